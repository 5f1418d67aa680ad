"""Worked values: from the papers' formulas or by hand, never from the code under test."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

from polytask.core.names import RULES
from polytask.core.noise import Noise
from polytask.core.rules import find
from polytask.core.state import Rule

# The two gradients that the literature's libraries share as a worked example; G = [[18, -22], [-22, 38]].
J = torch.tensor([[-4.0, 1, 1], [6, 1, 1]], dtype=torch.float64)

# Weights by the closed forms for two tasks with a = g1.g1, b = g1.g2, c = g2.g2 (b < 0):
#   mgda    x = (c - b) / (a + c - 2 b) on the first task
#   pcgrad  (1 - b / a, 1 - b / c)
#   upgrad  half of pcgrad's: one projection a task, and their mean
WORKED = {
    "mgda": ([0.6, 0.4], [0.0, 1.0, 1.0]),
    "pcgrad": ([20 / 9, 30 / 19], [100 / 171, 650 / 171, 650 / 171]),
    "upgrad": ([10 / 9, 15 / 19], [50 / 171, 325 / 171, 325 / 171]),
}


def weights(name: str, vectors: Tensor, **options: Any) -> Tensor:
    tasks = [f"task{i}" for i in range(len(vectors))]
    return Rule(name, tasks, **options)(tasks, vectors @ vectors.T)


@pytest.mark.parametrize("name", WORKED)
def test_worked_example(name: str) -> None:
    wanted, update = (torch.tensor(values, dtype=torch.float64) for values in WORKED[name])
    found = weights(name, J)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
    torch.testing.assert_close(found @ J, update, rtol=0, atol=1e-11)


@pytest.mark.parametrize("name, closed", [
    ("mgda", lambda a, b, c: (np.clip((c - b) / (a + c - 2 * b), 0, 1), 1 - np.clip((c - b) / (a + c - 2 * b), 0, 1))),
    ("pcgrad", lambda a, b, c: (1 - min(b, 0) / a, 1 - min(b, 0) / c)),
    ("upgrad", lambda a, b, c: ((1 - min(b, 0) / a) / 2, (1 - min(b, 0) / c) / 2)),
])  # fmt: skip
def test_two_task_closed_forms(name: str, closed: Callable[[float, float, float], list[float]]) -> None:
    random = np.random.default_rng(0)
    for _ in range(200):
        X = random.standard_normal((2, 4)) * 10.0 ** random.uniform(-3, 3, size=(2, 1))
        (a, b), (_, c) = X @ X.T
        wanted = torch.tensor(closed(a, b, c), dtype=torch.float64)
        torch.testing.assert_close(weights(name, torch.from_numpy(X)), wanted, rtol=1e-9, atol=1e-12)


def test_every_rule_has_a_golden_value() -> None:
    """In this file or one beside it, or in those of the merges."""
    here, merging = Path(__file__).parent, Path(__file__).parent.parent / "merging"
    files = [*sorted(here.glob("test_golden*.py")), *sorted(merging.glob("test_*rules.py"))]
    golden = "".join(path.read_text() for path in files)
    assert [name for name in RULES if f'"{name}"' not in golden] == []


def test_equal_is_the_plain_sum() -> None:
    assert find("equal")(torch.tensor([5.0, 0.1, 3.0])).tolist() == [1.0, 1.0, 1.0]


def test_dwa_by_hand() -> None:
    """Equations 7 and 8 with temperature 2: weights 1 for two epochs, then 2 softmax(ratio / 2) of the means."""
    rule = Rule("dwa", ["a", "b"])
    for epoch in ([[4.0, 1.0], [2.0, 3.0]], [[1.0, 1.0], [2.0, 1.0]]):  # means (3, 2), then (1.5, 1)
        for losses in epoch:
            assert rule(["a", "b"], torch.tensor(losses, dtype=torch.float64)).tolist() == [1.0, 1.0]
            rule.advance()
        rule.after_epoch()
    # ratios 1.5 / 3 = 0.5 and 1 / 2 = 0.5: equal
    assert rule(["a", "b"], torch.tensor([0.3, 0.5], dtype=torch.float64)).tolist() == pytest.approx([1.0, 1.0])
    rule.after_epoch()  # means (0.3, 0.5): ratios 0.3 / 1.5 = 0.2 and 0.5 / 1 = 0.5
    e, f = math.exp(0.1), math.exp(0.25)
    found = rule(["a", "b"], torch.tensor([9.0, 9.0], dtype=torch.float64)).tolist()
    assert found == pytest.approx([2 * e / (e + f), 2 * f / (e + f)])


def test_dwa_temperature() -> None:
    rule = Rule("dwa", ["a", "b"], temperature=1.0)
    for losses in ([1.0, 1.0], [0.5, 1.0]):
        rule(["a", "b"], torch.tensor(losses, dtype=torch.float64))
        rule.after_epoch()
    e, f = math.exp(0.5), math.exp(1.0)
    found = rule(["a", "b"], torch.ones(2, dtype=torch.float64)).tolist()
    assert found == pytest.approx([2 * e / (e + f), 2 * f / (e + f)])


def test_uncertainty_by_hand() -> None:
    """s starts at 0: the weight is 1/2; Adam's first step has size lr against the gradient (1 - L) / 2 of s."""
    rule = Rule("uncertainty", ["a", "b"], learning_rate=0.1)
    losses = torch.tensor([4.0, 0.25], dtype=torch.float64)
    assert rule(["a", "b"], losses).tolist() == [0.5, 0.5]
    second = rule(["a", "b"], losses).tolist()  # s = (0.1, -0.1)
    assert second == pytest.approx([math.exp(-0.1) / 2, math.exp(0.1) / 2], rel=1e-7)


def test_uncertainty_ends_where_the_variance_is_the_loss() -> None:
    """The minimum of exp(-s) L / 2 + s / 2 over s is s = log L, so the weight is 1 / (2 L)."""
    rule = Rule("uncertainty", ["a", "b"], learning_rate=0.05)
    losses = torch.tensor([4.0, 0.25], dtype=torch.float64)
    for _ in range(800):
        found = rule(["a", "b"], losses)
    assert found.tolist() == pytest.approx([1 / 8, 2.0], rel=1e-3)


@pytest.mark.parametrize("tasks, size", [(3, 10), (5, 4), (8, 100), (6, 6)])
def test_pcgrad_equals_the_algorithm_on_the_gradients(tasks: int, size: int) -> None:
    """Algorithm 1 as printed, on vectors: each gradient in turn meets the others in random order."""
    for draw in range(20):
        X = torch.from_numpy(np.random.default_rng(draw).standard_normal((tasks, size)))
        order = np.argsort(Noise(3, "rule", "pcgrad", 0).raw(tasks**2).reshape(tasks, tasks), axis=1, kind="stable")
        projected = X.clone()
        for i in range(tasks):
            for j in order[i].tolist():
                inner = projected[i] @ X[j]
                if j != i and inner < 0:
                    projected[i] -= inner / (X[j] @ X[j]) * X[j]
        found = weights("pcgrad", X, seed=3) @ X
        torch.testing.assert_close(found, projected.sum(0), rtol=0, atol=1e-9)


def test_pcgrad_meets_the_tasks_in_every_order() -> None:
    """With three tasks in conflict two orders exist for each; over seeds every combination of results appears."""
    X = torch.tensor([[1.0, 0.0, 0.1], [-0.6, 0.8, 0.0], [-0.6, -0.7, 0.5]], dtype=torch.float64)
    results = {tuple((weights("pcgrad", X, seed=seed)).round(decimals=9).tolist()) for seed in range(100)}
    assert len(results) == 8


@pytest.mark.parametrize("tasks, size", [(2, 5), (4, 10), (6, 3)])
def test_upgrad_and_mgda_equal_their_programs_on_the_vectors(tasks: int, size: int) -> None:
    """Both quadratic programs solved by SLSQP on the vectors themselves."""
    for draw in range(10):
        X = np.random.default_rng([draw, tasks]).standard_normal((tasks, size))
        projections = [_projected(X, X[i]) for i in range(tasks)]
        found = (weights("upgrad", torch.from_numpy(X)) @ torch.from_numpy(X)).numpy()
        np.testing.assert_allclose(found, np.mean(projections, axis=0), atol=2e-5)
        shortest = minimize(
            lambda a, X=X: float((a @ X) @ (a @ X)), np.full(tasks, 1 / tasks), jac=lambda a, X=X: 2 * X @ (a @ X),
            bounds=[(0, 1)] * tasks, constraints={"type": "eq", "fun": lambda a: a.sum() - 1}, method="SLSQP",
            options={"ftol": 1e-14, "maxiter": 500},
        )  # fmt: skip
        length = float((weights("mgda", torch.from_numpy(X)) @ torch.from_numpy(X)).norm())
        assert length == pytest.approx(math.sqrt(shortest.fun), abs=2e-5)


def _projected(X: np.ndarray, g: np.ndarray) -> np.ndarray:
    """The nearest d to g with X d >= 0."""
    return minimize(
        lambda d: float((d - g) @ (d - g)), g, jac=lambda d: 2 * (d - g), method="SLSQP",
        constraints={"type": "ineq", "fun": lambda d: X @ d, "jac": lambda d: X},
        options={"ftol": 1e-14, "maxiter": 500},
    ).x  # fmt: skip


def test_upgrad_takes_a_preference() -> None:
    """The projections are weighted by it: with all of it on the first task only its projection is left."""
    priority = torch.tensor([1.5, 0.5], dtype=torch.float64)
    found = Rule("upgrad", ["a", "b"])(["a", "b"], J @ J.T, priority=priority) @ J
    # the two projections of the worked example: g1 - (b / c) g2 and g2 - (b / a) g1, each over 2
    first, second = J[0] + 22 / 38 * J[1], J[1] + 22 / 18 * J[0]
    torch.testing.assert_close(found, 0.75 * first + 0.25 * second)


@pytest.mark.parametrize("scale", [1e-15, 1e15])
@pytest.mark.parametrize("name", ["mgda", "pcgrad", "upgrad"])
def test_the_scale_of_the_gradients_does_not_matter(name: str, scale: float) -> None:
    torch.testing.assert_close(weights(name, J * scale), weights(name, J), rtol=1e-9, atol=0)
