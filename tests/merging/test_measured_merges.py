"""Merges by what is measured of each model: RegMean and Fisher, against their formulas and the union of the data."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from merging.learned_problem import TASKS, Problem
from polytask.core.errors import BadValue, CheckpointError
from polytask.core.noise import Noise
from polytask.merging.learned.fisher import weighted_mean
from polytask.merging.learned.regmean import least_squares
from polytask.merging.learning import learn
from polytask.merging.samples import samples


def normal(*shape: int, key: str = "") -> Tensor:
    return torch.from_numpy(Noise(0, key).normal(torch.Size(shape).numel())).reshape(shape)


def test_regmean_of_linear_models_is_least_squares_on_the_union() -> None:
    """Each model is the least squares solution of its own rows; so is the merge, of all rows together."""
    rows = [normal(40, 5, key=f"x {task}") * torch.tensor([3.0, 1, 1, 0.2, 1]) for task in range(3)]
    targets = [x @ normal(5, 2, key=f"w {task}") + 0.3 * normal(40, 2, key=f"e {task}") for task, x in enumerate(rows)]
    models = torch.stack([torch.linalg.lstsq(x, y).solution.T for x, y in zip(rows, targets, strict=True)])
    union = torch.linalg.lstsq(torch.cat(rows), torch.cat(targets)).solution.T
    grams = torch.stack([x.T @ x for x in rows])
    torch.testing.assert_close(least_squares(models, grams, 1.0), union)
    assert not torch.allclose(least_squares(models, grams, 0.9), union, atol=1e-3)


def test_regmean_by_hand() -> None:
    """Diagonal alone: column by column the mean weighted by 1 and 3, and by 2 and 2; an unseen column is the mean."""
    weights = torch.tensor([[[1.0, 1, 4]], [[5.0, 3, 8]]])
    grams = torch.tensor([[[1.0, 1, 0], [1, 2, 0], [0, 0, 0]], [[3.0, 2, 0], [2, 2, 0], [0, 0, 0]]])
    torch.testing.assert_close(least_squares(weights, grams, 0.0), torch.tensor([[4.0, 2, 6]]))


def test_regmean_reads_the_inputs_of_each_models_own_layers() -> None:
    problem = Problem(batches=2)
    _, merged = learn("regmean", problem.models, problem.samples(), base=problem.base, batches=2)
    first = [torch.cat([rows["x"] for rows in problem.batches[task]]) for task in TASKS]
    second = []
    for task, x in zip(TASKS, first, strict=True):
        net = problem.nets[task].eval()
        second.append(torch.cat([net.norm(net.layers[0](part)).tanh() for part in x.split(12)]).detach())
    for name, inputs in (("layers.0.weight", first), ("layers.1.weight", second)):
        weights = torch.stack([problem.models[task][name] for task in TASKS])
        wanted = least_squares(weights, torch.stack([x.double().T @ x.double() for x in inputs]), 0.9)
        torch.testing.assert_close(merged[name], wanted, rtol=1e-4, atol=1e-5)
    for name in ("layers.0.bias", "norm.weight", "norm.running_mean"):
        torch.testing.assert_close(merged[name], sum(problem.models[task][name] for task in TASKS) / 3)


class Scorer(nn.Module):
    """One linear layer; what it gives is logits of classes, a logit, or a number."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        self.layer.weight.data = weight.clone()

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


@pytest.mark.parametrize("kind", ["classes", "labels", "values"])
def test_fisher_information_is_that_of_the_formula(kind: str) -> None:
    """E_x E_y (d log p / d w)^2, from each row's and label's own log-probability in float64."""
    weights = {task: normal(3, 4, key=task).float() for task in ("a", "b")}
    x = {task: normal(6, 4, key=f"rows {task}").float() for task in weights}
    nets = {task: Scorer(weight) for task, weight in weights.items()}
    data = samples(nets, {task: rows.split(3) for task, rows in x.items()}, outputs=dict.fromkeys(weights, kind))
    models = {task: {"layer.weight": weight} for task, weight in weights.items()}
    _, merged = learn("fisher", models, data, batches=2, least=1e-12)
    information = []
    for task, weight in weights.items():
        total = torch.zeros(3, 4, dtype=torch.float64)
        for row in x[task].double():
            z = weight.double() @ row
            p = z.softmax(0) if kind == "classes" else z.sigmoid()
            slopes = {
                # d log p_y / dz_j = [j = y] - p_j; of a label (1 - p) with p and -p with 1 - p; of a number E (y - z)^2
                "classes": [(p[y], torch.eye(3, dtype=torch.float64)[y] - p) for y in range(3)],
                "labels": [(1.0, (p * (1 - p)).sqrt())],
                "values": [(1.0, torch.ones(3, dtype=torch.float64))],
            }[kind]
            for probability, slope in slopes:
                total += probability * torch.outer(slope, row) ** 2
        information.append(total / 6)
    wanted = sum(f * weight for f, weight in zip(information, weights.values(), strict=True)) / sum(information)
    torch.testing.assert_close(merged["layer.weight"], wanted.float())


def test_fisher_by_hand() -> None:
    models, weights = torch.tensor([[1.0, 2.0], [5.0, 4.0]]), torch.tensor([[3.0, 1.0], [1.0, 1.0]])
    assert weighted_mean(models, weights).tolist() == [2.0, 3.0]


def test_what_nobody_needs_is_the_mean() -> None:
    """The second input is never there, so no model's Fisher information is above the least."""
    weights = {"a": torch.tensor([[1.0, 1.0]]), "b": torch.tensor([[2.0, 5.0]])}
    x = {"a": torch.tensor([[4.0, 0.0]]), "b": torch.tensor([[1.0, 0.0]])}
    data = samples(
        {t: Scorer(w) for t, w in weights.items()},
        {t: [r] for t, r in x.items()},
        outputs={"a": "values", "b": "values"},
    )
    models = {task: {"layer.weight": weight} for task, weight in weights.items()}
    _, merged = learn("fisher", models, data, batches=1)
    torch.testing.assert_close(merged["layer.weight"], torch.tensor([[(16 * 1.0 + 1 * 2.0) / 17, 3.0]]))


def test_fisher_refuses_outputs_of_sequences() -> None:
    net = nn.Linear(2, 3)
    data = samples(net, {"a": [torch.zeros(4, 5, 2)]})
    with pytest.raises(BadValue, match=r"\[4, 5, 3\]; allowed: \[rows\] or \[rows, outputs\] .*task 'a'|task 'a'"):
        learn("fisher", {"a": dict(net.state_dict())}, data)


@pytest.mark.parametrize("method", ["regmean", "fisher"])
def test_statistics_are_measured_once(method: str, tmp_path: Path) -> None:
    problem, folder = Problem(batches=2), str(tmp_path / "kept")
    options = {"base": problem.base, "batches": 2, "statistics": folder}
    _, first = learn(method, problem.models, problem.samples(), **options)

    def never(*_: object) -> Tensor:
        raise AssertionError("the data were read again")

    _, again = learn(method, problem.models, problem.samples(forward=never), **options)
    assert all(torch.equal(first[name], again[name]) for name in first)
    _, unkept = learn(method, problem.models, problem.samples(), base=problem.base, batches=2)
    assert all(torch.equal(first[name], unkept[name]) for name in first)


def test_statistics_of_something_else_are_refused(tmp_path: Path) -> None:
    problem, folder = Problem(batches=2), tmp_path / "kept"
    options = {"base": problem.base, "statistics": str(folder)}
    learn("regmean", problem.models, problem.samples(), batches=2, **options)
    with pytest.raises(CheckpointError, match=r"a\.safetensors: was measured with batches 2, and this merge has 1"):
        learn("regmean", problem.models, problem.samples(), batches=1, **options)
    other = {**problem.models, "b": {name: value + 1 for name, value in problem.models["b"].items()}}
    with pytest.raises(CheckpointError, match=r"b\.safetensors: was measured with model"):
        learn("regmean", other, problem.samples(), batches=2, **options)
    fewer = problem.samples(batches={task: rows[:1] for task, rows in problem.batches.items()})
    with pytest.raises(CheckpointError, match=r"a\.safetensors: was measured with data .*'batches': 2.*'batches': 1"):
        learn("regmean", problem.models, fewer, batches=2, **options)
    path = folder / "regmean" / "c.safetensors"
    kept = path.read_bytes()
    save_file(load_file(path), path)
    with pytest.raises(CheckpointError, match=r"c\.safetensors: no saved state"):
        learn("regmean", problem.models, problem.samples(), batches=2, **options)
    path.write_bytes(kept[:40])
    with pytest.raises(CheckpointError, match=r"c\.safetensors: damaged"):
        learn("regmean", problem.models, problem.samples(), batches=2, **options)
