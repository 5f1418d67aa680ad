"""Attachments in the trainer: what a step does, stages, checkpoints, and what is refused."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from tests.training.runs import events, job, outcome, recipe, table, train
from torch import Tensor

import polytask
from polytask.balancing import balancer
from polytask.checkpoints import read_checkpoint, resolve
from polytask.core.errors import BadValue, CheckpointError, Inconsistent, MissingInput, NotFinite, UnknownName
from polytask.recipes.reading import read_recipe
from polytask.recipes.run import make_job
from polytask.sharing import ATTACHMENTS, Branches, attachment
from polytask.studies.baseline import single_task
from polytask.training.attached import Attached
from polytask.training.devices import Devices
from polytask.training.stage import Stage

TURNED = {"kind": "rotograd", "learning_rate": 0.01, "decay": 0.9}
ALL = [TURNED, "rep_mtl", "covariance_alignment"]


def stage_of(**settings) -> tuple[Stage, torch.nn.Module]:
    return started(job(**settings))


def started(made) -> tuple[Stage, torch.nn.Module]:
    """The first stage of a run, and its model."""
    model = made.build()
    devices = Devices(made.run)
    names = [name for name, _ in model.named_parameters()]
    splits = {name: source.splits["train"] for name, source in made.data.sources.items()}
    return Stage(made, 0, model, names, splits, {}, devices), model


def rotations(tensors: dict[str, Tensor]) -> Tensor:
    return torch.cat([tensor for name, tensor in tensors.items() if ".rotations." in name])


@pytest.mark.parametrize("rule", ["equal", {"kind": "upgrad", "engine": "representation"}])
def test_steps_equal_a_loop_of_ones_own(rule):
    """Three steps of the trainer, and the same ones with the attachments called by hand, as the page shows it."""
    settings = {"train__attachments": ALL[:2], "train__rule": rule, "train__optimizer": {"kind": "sgd", "lr": 0.1}}
    stage, model = stage_of(**settings)
    _, twin = stage_of(**settings)
    tasks = list(stage.targets)
    saliency = attachment("rep_mtl", tasks, 8)
    rotograd = twin.attachments["rotograd"]
    mine = torch.optim.SGD([p for name, p in twin.named_parameters() if "rotograd" not in name], lr=0.1)
    turning, rates = rotograd.optimizer(), []
    kind, engine = ("equal", "exact") if rule == "equal" else (rule["kind"], rule["engine"])
    rule_of_mine = balancer(kind, engine=engine, tasks=tasks)
    for step, pieces in zip(range(3), stage.batches(0), strict=False):
        report = stage.train(pieces, step)
        (piece,) = pieces
        z = twin.representation(piece.inputs)
        outputs = twin.from_representation(z, tasks)
        losses = {}
        for task in tasks:
            numerator, count = stage.targets[task].loss(outputs[task], piece.labels[task], piece.present[task])
            losses[task] = numerator / count
        terms = {"rotograd": rotograd.backward(losses, z), "rep_mtl": saliency.backward(losses, z)}
        rule_of_mine.backward(losses, twin, **({"representation": z} if engine == "representation" else {}))
        mine.step()
        turning.param_groups[0]["lr"] = rotograd.learning_rate(step)
        rates.append(turning.param_groups[0]["lr"])
        turning.step()
        mine.zero_grad()
        turning.zero_grad()
        assert stage.attached.values == pytest.approx({kind: term.item() for kind, term in terms.items()}, rel=1e-5)
        assert report is not None
    assert rates == pytest.approx([0.01, 0.009, 0.0081])
    found, expected = model.state_dict(), twin.state_dict()
    assert rotations(found).abs().max() > 0.02
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("sharing", ["hard", {"kind": "mmoe", "experts": 2, "hidden_sizes": [6]}])
def test_a_run_with_all_of_them(tmp_path, sharing):
    """Trains, writes what predicting needs, and predicts the same from the directory alone."""
    results = train(tmp_path, train__attachments=ALL, train__rule="pcgrad", model__sharing=sharing)
    assert set(results["test"]) == {"click", "buy", "topic", "price"}
    terms = [event["terms"] for event in events(tmp_path, "step")]
    assert all(list(each) == ["rotograd", "rep_mtl"] for each in terms)
    trained = polytask.load(tmp_path)
    assert list(trained.model.attachments) == ["rotograd", "covariance_alignment"]
    tensors = read_checkpoint(resolve(tmp_path)).tensors()
    assert rotations(tensors).abs().max() > 0
    rows = {name: values for name, values in table(20, seed=5).items() if name[0] in "xk"}
    first = trained.predict(rows)
    assert first.equals(polytask.load(tmp_path).predict(rows))
    for rotation in trained.model.attachments["rotograd"].rotations.values():
        rotation.skew.data.zero_()
    assert not first.equals(trained.predict(rows))  # it predicts with its rotations


def test_mixed_precision(tmp_path):
    """Terms are computed in single precision from bf16's gradients."""
    train(tmp_path / "mixed", train__attachments=ALL, train__precision="bf16", train__epochs=1)
    train(tmp_path / "single", train__attachments=ALL, train__epochs=1)
    first, second = (events(tmp_path / name, "step")[0]["terms"] for name in ("mixed", "single"))
    assert first == pytest.approx(second, rel=0.1)
    tensors = read_checkpoint(resolve(tmp_path / "mixed")).tensors()
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}


def test_a_loss_that_is_not_finite_is_named_as_without_attachments(tmp_path):
    with pytest.raises(NotFinite, match=r"the loss of task '\w+' is (nan|inf) at step \d+; the batch's row numbers"):
        train(tmp_path, train__attachments=ALL, train__optimizer={"kind": "sgd", "lr": 1e30})


def test_resumed_bit_for_bit(tmp_path):
    settings = {
        "train__attachments": ALL,
        "train__checkpoint_every": 1,
        "train__epochs": 2,
        "train__rule": "uncertainty",
    }

    def stop(event):
        if event["event"] == "step" and event["step"] == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run", listeners=[stop], **settings)
    train(tmp_path / "run", resume=True, **settings)
    train(tmp_path / "straight", **settings)
    assert outcome(tmp_path / "run") == outcome(tmp_path / "straight")


def test_a_stage_that_does_not_name_them_leaves_rotations_as_they_are(tmp_path):
    short = {"steps": 2, "batch_size": 32}
    stages = [
        {"name": "plain", **short},
        {"name": "turned", "attachments": [TURNED], **short},
        {"name": "end", **short},
    ]
    train(tmp_path, stages=stages, run__checkpoint_every=1, run__keep=10)
    seen = [read_checkpoint(tmp_path / "checkpoints" / f"step-{step}").tensors() for step in range(1, 7)]
    sizes = [float(rotations(tensors).abs().max()) for tensors in seen]
    assert sizes[:2] == [0.0, 0.0]
    assert 0.0 < sizes[2] < sizes[3]
    assert sizes[3] == sizes[4] == sizes[5]
    assert not seen[4]["heads.click.output.bias"].equal(seen[5]["heads.click.output.bias"])


def test_the_alignments_alone_as_the_algorithm_trains_them(tmp_path):
    """Step 3 of its Algorithm 1: the shared module stays."""
    aligned = {"attachments": ["covariance_alignment"], "steps": 2, "batch_size": 32}
    trainable = ["attachments.covariance_alignment.alignments", "heads"]
    stages = [{"name": "all", **aligned}, {"name": "aligned", **aligned, "trainable": trainable}]
    train(tmp_path, stages=stages, run__checkpoint_every=1, run__keep=10)
    before, after = (read_checkpoint(tmp_path / "checkpoints" / f"step-{step}").tensors() for step in (2, 4))
    moved = [name for name in before if not before[name].equal(after[name])]
    assert {".".join(name.split(".")[:3]) if name[0] == "a" else "heads" for name in moved} == {trainable[0], "heads"}


def test_a_batch_with_few_labels(tmp_path):
    """Tasks absent from a batch, and a batch with one task only."""
    rows = table()
    for task in ("buy", "price", "topic"):
        labels = rows[task].astype(object)
        labels[30:] = None
        rows[task] = labels
    train(tmp_path, data=rows, train__attachments=ALL, train__batch_size=8, train__epochs=1)
    terms = [event["terms"] for event in events(tmp_path, "step")]
    assert any(len(event["losses"]) == 1 for event in events(tmp_path, "step"))
    assert all(value == value for each in terms for value in each.values())


def test_a_single_task_baseline_has_none():
    made = job(train__attachments=ALL)
    alone = single_task(made, "click")
    assert alone.attachments == []
    assert alone.stages[0].attachments == ()
    assert not alone.build().attachments


def test_starting_from_a_model_without_them_and_not_the_other_way_round(tmp_path):
    train(tmp_path / "plain")
    train(tmp_path / "turned", train__attachments=ALL)
    made = job(train__attachments=ALL, model__init_from=str(resolve(tmp_path / "plain"))).build()
    plain = read_checkpoint(resolve(tmp_path / "plain")).tensors()
    assert all(tensor.equal(plain[name]) for name, tensor in made.state_dict().items() if name in plain)
    assert sorted({name.split(".")[1] for name in made.start.fresh}) == ["covariance_alignment", "rotograd"]
    with pytest.raises(CheckpointError, match=r"holds, and the model lacks, 'attachments\."):
        job(model__init_from=str(resolve(tmp_path / "turned"))).build()


def test_what_is_refused():
    with pytest.raises(UnknownName, match="no attachment 'rotogard'"):
        job(train__attachments=["rotogard"])
    with pytest.raises(BadValue, match="attachments is 'rotograd'; allowed: a list"):
        job(train__attachments="rotograd")
    with pytest.raises(BadValue, match="allowed: rotograd once"):
        job(train__attachments=["rotograd", TURNED])
    with pytest.raises(MissingInput, match="'rep_mtl': the tasks share no representation"):
        stage_of(train__attachments=["rep_mtl"], model__sharing="single")
    with pytest.raises(Inconsistent, match="'rotograd' reads the shared representation itself: name it first"):
        job(train__attachments=["covariance_alignment", "rotograd"]).build()
    two = [{"name": "a", "attachments": ["rotograd"]}, {"name": "b", "attachments": [TURNED]}]
    with pytest.raises(Inconsistent, match="stage 'b': attachment 'rotograd' is part of the model"):
        job(stages=two)


def test_terms_where_tasks_have_no_rows_in_common_are_refused():
    """Tasks of two sources, and a stem for each task."""
    big, small = ({name: table()[name] for name in ("x0", "x1", label)} for label in ("click", "topic"))
    tasks = {"click": {"kind": "binary", "source": "big"}, "topic": {"kind": "multiclass", "source": "small"}}
    for kind in ("rotograd", "rep_mtl"):
        values = recipe(tasks=tasks, model__encoder="mlp", train__attachments=[kind])
        with pytest.raises(Inconsistent, match=f"'{kind}': tasks of sources big, small have no rows in common"):
            started(make_job(read_recipe(values), data={"big": big, "small": small}))


@pytest.mark.parametrize("kind", ["rotograd", "rep_mtl", "modality_calibration"])
@pytest.mark.parametrize(
    "world, scaler, error",
    [
        (2, None, "compares the rows of a whole batch, which 2 processes share out"),
        (1, object(), "is not scaled as precision fp16 needs"),
    ],
)
def test_processes_and_precisions_that_it_does_not_serve_are_refused(kind, world, scaler, error):
    devices = SimpleNamespace(world=world, scaler=scaler)
    model = job(train__attachments=["rotograd", "covariance_alignment"]).build()
    model.sharing.branches = Branches()
    found = Attached([ATTACHMENTS.find(kind).Options()], model, ["click"], 0)
    if (kind, scaler is None) in (("modality_calibration", False), ("rotograd", True)):
        found.check("s", devices, balancer("equal"), 1)
    else:
        with pytest.raises(Inconsistent, match=f"stage 's', attachment '{kind}': .*{error}"):
            found.check("s", devices, balancer("equal"), 1)
    Attached([ATTACHMENTS.find("covariance_alignment").Options()], model, ["click"], 0).check(
        "s", devices, balancer("equal"), 1
    )


# ---- modality branches


class TwoModalities(torch.nn.Module):
    """Numbers and categories, a branch each, added up."""

    def __init__(self, options=None, schema=None):
        super().__init__()
        self.numbers, self.kinds = torch.nn.Linear(4, 6), torch.nn.Embedding(9, 6)
        self.branches = Branches()
        self.seen = {}
        self.width = 6

    def forward(self, inputs):
        outputs = {"numbers": self.numbers(inputs["numeric"]), "kinds": self.kinds(inputs["categorical"][:, 0]) / 50}
        for name, output in outputs.items():
            if output.requires_grad:
                output.register_hook(lambda grad, name=name: self.seen.__setitem__(name, grad.norm().item()))
        outputs = self.branches(outputs)
        return (outputs["numbers"] + 10 * outputs["kinds"]).tanh()


def fused(schema):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return TwoModalities()


def norms_of(attachments, rule):
    made = replace(job(train__attachments=attachments, train__rule=rule, model__encoder=None), encoder=fused)
    stage, model = started(made)
    model.train()
    stage.train(next(iter(stage.batches(0))), 0)
    return model.sharing.encoder.seen


@pytest.mark.parametrize("rule", ["equal", {"kind": "imtl_g", "engine": "representation"}])
def test_branches_get_gradients_of_one_norm(rule):
    before, after = norms_of([], rule), norms_of(["modality_calibration"], rule)
    assert before["kinds"] == pytest.approx(10 * before["numbers"], rel=1e-5)
    mean = (before["kinds"] + before["numbers"]) / 2
    assert after == pytest.approx({"kinds": mean, "numbers": mean}, rel=1e-5)


def test_a_run_with_calibrated_branches(tmp_path):
    stages = [{"name": "one", "steps": 2, "attachments": ["modality_calibration"]}, {"name": "two", "steps": 2}]
    values = recipe(stages=stages, model__encoder=None)
    polytask.train(values, out=tmp_path, data={"data": table()}, encoder=fused)
    rows = {name: values for name, values in table(9, seed=2).items() if name[0] in "xk"}
    assert polytask.load(tmp_path, encoder=fused).predict(rows).height == 9


def test_branches_that_are_not_there_and_engines_that_take_a_pass_a_task():
    with pytest.raises(MissingInput, match="the encoder has no modality branches"):
        stage_of(train__attachments=["modality_calibration"])
    with pytest.raises(Inconsistent, match="engine 'auto' takes a pass a task; use engine 'representation'"):
        norms_of(["modality_calibration"], "upgrad")
