"""The penalty that keeps weights near a stage's start: by hand, beside every kind of rule, and over a break."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.training.runs import assert_resumes, events, job, outcome, train, train_until
from tests.training.test_dense import data as dense_data
from tests.training.test_dense import recipe as dense_recipe
from torch import Tensor, nn

import polytask
from polytask.checkpoints import read_checkpoint
from polytask.core.errors import BadValue, PolytaskError, UnknownName
from polytask.tasks.mixture import Mixture, MixtureSpec
from polytask.training.devices import Devices
from polytask.training.regularizer import Regularizer, first_rows, information
from polytask.training.spec import RegularizerSpec, RunSpec
from polytask.training.stage import Stage

SGD = {"train__optimizer": {"kind": "sgd", "lr": 0.1}, "train__checkpoint_every": 1, "train__keep": 100}
NEAR = {"kind": "l2_sp", "strength": 2.0}
FISHER = {"kind": "fisher", "strength": 3.0, "rows": 12}


def tensors(run: Path, step: int) -> dict[str, Tensor]:
    return read_checkpoint(run / "checkpoints" / f"step-{step}").tensors()


def test_the_slope_by_hand() -> None:
    """theta - start is (2, -2) and F is (2, 1/2): strength F (theta - start) is (2, -1/2) at 1/2; the penalty is
    1/4 (2 * 4 + 1/2 * 4)."""
    weight = nn.Parameter(torch.tensor([3.0, -1.0]))
    weight.grad = torch.tensor([1.0, 1.0])
    penalty = Regularizer(RegularizerSpec(kind="fisher", strength=0.5), {"w": weight})
    penalty.load_state_dict({"start": {"w": torch.tensor([1.0, 1.0])}, "information": {"w": torch.tensor([2.0, 0.5])}})
    penalty.add_gradients()
    assert weight.grad.tolist() == [3.0, 0.5]
    assert penalty.value == 2.5


def test_a_parameter_that_no_loss_reaches_is_pulled_back_too() -> None:
    weight = nn.Parameter(torch.tensor([3.0]))
    penalty = Regularizer(RegularizerSpec(kind="l2_sp", strength=0.5), {"w": weight})
    penalty.load_state_dict({"start": {"w": torch.tensor([1.0])}, "information": {}})
    penalty.add_gradients()
    assert weight.grad is not None
    assert weight.grad.tolist() == [1.0]


def test_information_is_that_of_the_formula() -> None:
    """In float64, from each row's own log-probabilities: of two classes and of three, and of a number with variance 1;
    of each task the mean over those rows that have a label of it."""
    made = job()
    model = made.build().double()
    mixture = Mixture({"data": made.data.sources["data"].splits["train"]}, MixtureSpec(), 8, 0)
    pieces = list(first_rows(mixture, 20))
    assert [len(piece) for piece in pieces] == [8, 8, 4]
    pieces = [
        type(piece)(
            **{
                **vars(piece),
                "inputs": {k: v.double() if v.is_floating_point() else v for k, v in piece.inputs.items()},
            }
        )
        for piece in pieces
    ]
    own = {name: value for name, value in model.named_parameters() if name.startswith("sharing")}
    found = information(model, own, pieces, made.targets, Devices(RunSpec(device="cpu")))
    wanted = {name: torch.zeros_like(value) for name, value in own.items()}
    labelled = {task: sum(int(piece.present[task].sum()) for piece in pieces) for task in made.tasks}
    assert labelled["buy"] < labelled["click"] == 20
    for piece in pieces:
        for row in range(len(piece)):
            for task in made.tasks:
                if not piece.present[task][row]:
                    continue
                inputs = {name: values[row : row + 1] for name, values in piece.inputs.items()}
                z = model.eval()(inputs, [task])[task].reshape(-1)
                logs = {
                    "binary": torch.stack([nn.functional.logsigmoid(z[0]), nn.functional.logsigmoid(-z[0])]),
                    "multiclass": z.log_softmax(0),
                    "regression": z,  # E (d log p)^2 is that of the mean, times E (y - z)^2 = 1
                }[made.targets[task].task.kind]
                of_numbers = made.targets[task].task.kind == "regression"
                for log in logs:
                    slopes = torch.autograd.grad(log, list(own.values()), retain_graph=True, allow_unused=True)
                    for name, slope in zip(own, slopes, strict=True):
                        if slope is not None:
                            chance = 1.0 if of_numbers else log.detach().exp()
                            wanted[name] += chance * slope**2 / labelled[task]
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-12)
    assert all(bool((value > 0).any()) for value in found.values())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("regularizer", [NEAR, FISHER], ids=["l2_sp", "fisher"])
def test_strength_zero_is_no_penalty(tmp_path: Path, regularizer: dict[str, Any]) -> None:
    train(tmp_path / "without", train__rule="pcgrad")
    train(tmp_path / "zero", train__rule="pcgrad", train__regularizer={**regularizer, "strength": 0})
    assert outcome(tmp_path / "zero") == outcome(tmp_path / "without")


RULES: dict[str, Any] = {
    "on losses": "uncertainty",
    "on losses, looking again": "famo",
    "on losses and validation": "coba",
    "on the Gram matrix": "upgrad",
    "on the Gram matrix of two batches": "sdmgrad",
    "on elements": "trimmed_mean",
    "on elements, at random": "graddrop",
    "that remembers gradients": "db_mtl",
    "procedure": {"kind": "sharpness_aware", "inner": "upgrad"},
    "on the representation": {"kind": "mgda", "engine": "representation"},
    "on a part of the rows": {"kind": "upgrad", "engine": "subset"},
    "with kept weights": {"kind": "upgrad", "engine": "interval"},
}


@pytest.mark.parametrize("rule", RULES)
def test_no_rule_sees_the_penalty(tmp_path: Path, rule: str) -> None:
    """The first step begins at the start, so it is the same with and without. The second has the same losses, weights
    and cosines, and moves by -lr strength (theta - start) more: what the rule is given does not contain the penalty."""
    settings = {**SGD, "train__rule": RULES[rule], "train__epochs": None, "train__steps": 2}
    train(tmp_path / "without", **settings)
    train(tmp_path / "near", **settings, train__regularizer=NEAR)
    plain, near = (events(tmp_path / name, "step") for name in ("without", "near"))
    for key in ("losses", "weights", "cosines", "measured"):
        assert [event.get(key) for event in near] == [event.get(key) for event in plain]
    start = dict(job(**settings).build().state_dict())
    first, second = tensors(tmp_path / "without", 1), tensors(tmp_path / "without", 2)
    assert all(torch.equal(value, first[name]) for name, value in tensors(tmp_path / "near", 1).items())
    moved = 0.0
    for name, value in tensors(tmp_path / "near", 2).items():
        more = 0.0 if name.startswith("heads.") else -0.1 * 2.0 * (first[name] - start[name])
        torch.testing.assert_close(value, second[name] + more, rtol=1e-5, atol=1e-7)
        moved += 0.0 if name.startswith("heads.") else float((first[name] - start[name]).double().square().sum())
    assert moved > 0
    assert [event["terms"]["regularizer"] for event in near] == pytest.approx([0.0, moved], rel=1e-5)


def test_a_step_in_parts_has_the_penalty_once(tmp_path: Path) -> None:
    settings = {**SGD, "train__epochs": None, "train__steps": 3, "train__regularizer": NEAR}
    for parts in ({"parts": 1}, {"parts": 4}, {"parts": 4, "gram": "recomputed"}):
        train(tmp_path / str(parts), train__rule="upgrad", train__accumulate=parts, **settings)
    whole, *others = (tensors(tmp_path / str(parts.name), 3) for parts in sorted(tmp_path.iterdir()))
    for other in others:
        for name, value in whole.items():
            torch.testing.assert_close(other[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rule", ["equal", "upgrad"])
def test_a_gradient_scaler_does_not_scale_the_penalty(rule: str) -> None:
    """As fp16 has on an accelerator: the tasks' gradients come scaled, and the penalty's must not."""
    made = job(**SGD, train__rule=rule, train__regularizer={"kind": "l2_sp", "strength": 5.0})
    rows = {name: source.splits["train"] for name, source in made.data.sources.items()}
    ended = []
    for scaler in (None, torch.amp.GradScaler("cpu", init_scale=1024.0)):
        model, devices = made.build(), Devices(made.run)
        devices.scaler = scaler
        stage = Stage(made, 0, model, [name for name, _ in model.named_parameters()], rows, rows, devices)
        stage.begin()
        for step, pieces in enumerate(stage.batches(0)):
            stage.train(pieces, step)
        ended.append(dict(model.state_dict()))
    for name, value in ended[0].items():
        torch.testing.assert_close(ended[1][name], value, rtol=1e-5, atol=1e-7)


def test_clipping_is_of_the_whole_gradient(tmp_path: Path) -> None:
    """A penalty so strong that the second step goes back towards the start, by no more than lr clip."""
    settings = {**SGD, "train__epochs": None, "train__steps": 2, "train__clip": 0.01}
    train(tmp_path / "run", **settings, train__regularizer={"kind": "l2_sp", "strength": 1e6})
    start = dict(job(**settings).build().state_dict())
    first, second = tensors(tmp_path / "run", 1), tensors(tmp_path / "run", 2)
    step = torch.cat([(second[name] - first[name]).flatten() for name in first])
    held = [name for name in first if not name.startswith("heads.")]
    step_held, back = (torch.cat([(here[name] - first[name]).flatten() for name in held]) for here in (second, start))
    assert float(step.norm()) == pytest.approx(0.1 * 0.01, rel=1e-3)
    assert float(step_held @ back / step_held.norm() / back.norm()) > 0.99


def test_a_stage_begins_where_the_last_one_ended(tmp_path: Path) -> None:
    """The start is the stage's: heads alone are tuned first, then the rest is held where it was."""
    joint = {"name": "joint", "steps": 3, "batch_size": 32, "optimizer": {"kind": "sgd", "lr": 0.1}}
    stages = [
        {"name": "probe", "trainable": ["heads"], "steps": 2, "batch_size": 32},
        {**joint, "regularizer": {"kind": "l2_sp", "strength": 9.0, "parameters": ["heads.click", "sharing"]}},
    ]
    settings = {"stages": stages, "run__checkpoint_every": 1, "run__keep": 100}
    train(tmp_path / "run", **settings)
    state = read_checkpoint(tmp_path / "run" / "checkpoints" / "step-4").state()["stage"]["regularizer"]
    begun = tensors(tmp_path / "run", 2)
    assert {name.split(".")[0] for name in state["start"]} == {"heads", "sharing"}
    assert {name for name in state["start"] if name.startswith("heads")} == {
        f"heads.click.output.{part}" for part in ("weight", "bias")
    }
    assert all(torch.equal(value, begun[name]) for name, value in state["start"].items())
    assert state["information"] == {}


@pytest.mark.parametrize("step", [1, 3, 5])
def test_a_broken_run_goes_on_with_what_was_measured(tmp_path: Path, step: int) -> None:
    assert_resumes(tmp_path, step, train__regularizer=FISHER, train__rule="upgrad")


def test_a_run_that_goes_on_does_not_measure_again(tmp_path: Path) -> None:
    """The state of a checkpoint holds the start and F, which later weights would give otherwise."""
    settings = {**SGD, "train__regularizer": FISHER}
    train(tmp_path / "straight", **settings)
    train_until(4, tmp_path / "broken", **settings)
    train(tmp_path / "broken", resume=True, **settings)
    runs = [tmp_path / name / "checkpoints" for name in ("straight", "broken")]
    states = [read_checkpoint(run / f"step-{step}").state()["stage"]["regularizer"] for run in runs for step in (1, 6)]
    for state in states[1:]:
        for what in ("start", "information"):
            assert all(torch.equal(value, states[0][what][name]) for name, value in state[what].items())
    assert any(bool((value > 0).any()) for value in states[0]["information"].values())


@pytest.mark.parametrize(
    "regularizer, error, said",
    [
        ({"kind": "l2sp", "strength": 1}, PolytaskError, "kind"),
        ({"kind": "fisher"}, PolytaskError, "strength"),
        ({"kind": "fisher", "strength": -1}, PolytaskError, "strength"),
        ({"kind": "fisher", "strength": float("nan")}, PolytaskError, "strength"),
        ({"kind": "fisher", "strength": 1, "rows": 0}, PolytaskError, "rows"),
        ({"kind": "l2_sp", "strength": 1, "rows": 8}, PolytaskError, "rows belong to fisher, not to l2_sp"),
        ({**NEAR, "parameters": ["shared"]}, UnknownName, "regularizer: no beginning .* 'shared' .*mean 'sharing'"),
        ({**NEAR, "parameters": ["heads.clik"]}, UnknownName, "did you mean 'heads.click'"),
    ],
)
def test_what_cannot_be_is_refused_before_the_run(
    tmp_path: Path, regularizer: dict[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        train(tmp_path / "run", train__regularizer=regularizer)
    assert not (tmp_path / "run").exists()


def test_a_stage_that_trains_nothing_of_it_is_refused(tmp_path: Path) -> None:
    probe = {"name": "probe", "trainable": ["heads"], "steps": 2, "batch_size": 32, "regularizer": NEAR}
    with pytest.raises(BadValue, match="stage 'probe': regularizer: parameters is 'null'; allowed: beginnings"):
        train(tmp_path / "run", stages=[probe])


def test_information_of_maps_is_refused(tmp_path: Path) -> None:
    values = dense_recipe("hard on a pyramid", **{"train.regularizer": FISHER})
    with pytest.raises(BadValue, match="kind is 'fisher'; allowed: l2_sp: the outputs of task 'segmentation' are maps"):
        polytask.train(values, out=tmp_path / "run", data=dense_data())
