"""Coefficients by trial: no trial is better than the one that is kept, and the first is the start."""

import sys

import pytest
import torch
from torch import Tensor, nn

from merging.learned_problem import TASKS, Problem
from polytask.core.errors import BadValue, MissingExtra
from polytask.merging.learning import learn
from polytask.merging.samples import samples


def test_the_search_comes_near_the_least_of_a_quadratic_loss() -> None:
    """Base 0, vectors (1, 0) and (0, 1): with losses (w1 - .6)^2 and (w2 - .2)^2 the coefficients are .6 and .2."""
    targets = {"a": torch.tensor([0.6]), "b": torch.tensor([0.2])}
    net = nn.Linear(2, 1, bias=False)
    batches = {"a": [torch.tensor([[1.0, 0.0]])], "b": [torch.tensor([[0.0, 1.0]])]}

    def loss(task: str, outputs: Tensor, rows: Tensor) -> Tensor:
        return (outputs - targets[task]).square().mean()

    models = {"a": {"weight": torch.tensor([[1.0, 0.0]])}, "b": {"weight": torch.tensor([[0.0, 1.0]])}}
    data = samples(net, batches, loss=loss)
    base = {"weight": torch.zeros(1, 2)}
    found, merged = learn("search", models, data, base=base, trials=60, batches=1, start=0.5)
    first = (0.5 - 0.6) ** 2 + (0.5 - 0.2) ** 2
    assert found.facts["objective_first"] == pytest.approx(first)
    assert found.facts["objective_best"] < first / 5
    values = [found.coefficients[task] for task in ("a", "b")]
    assert merged["weight"].tolist() == [pytest.approx(values)]
    best = (values[0] - 0.6) ** 2 + (values[1] - 0.2) ** 2
    assert best == pytest.approx(found.facts["objective_best"], rel=1e-4)
    one, _ = learn("search", models, data, base=base, trials=1, batches=1, start=0.5)
    assert one.coefficients == {"a": 0.5, "b": 0.5}
    seeds = [learn("search", models, data, base=base, trials=20, batches=1, seed=seed)[0] for seed in (1, 2)]
    assert seeds[0].coefficients != seeds[1].coefficients


def test_a_coefficient_a_layer() -> None:
    problem = Problem()
    found, _ = learn("search", problem.models, problem.samples(), base=problem.base, each="layer", trials=2, batches=1)
    own = found.coefficients[TASKS[0]]
    assert isinstance(own, dict)
    assert own["layers.0.weight"] == own["layers.0.bias"]
    assert all(0 <= number <= 1 for number in own.values())


@pytest.mark.parametrize("bounds", [{"low": 0.5}, {"high": 0.2}, {"low": 0.3, "high": 0.3}])
def test_bounds_hold_the_start(bounds: dict[str, float]) -> None:
    problem = Problem()
    with pytest.raises(BadValue, match="low <= start <= high"):
        learn("search", problem.models, problem.samples(), base=problem.base, **bounds)


def test_without_optuna_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    problem = Problem()
    with pytest.raises(MissingExtra, match=r"polytask\[tune\]"):
        learn("search", problem.models, problem.samples(), base=problem.base)
