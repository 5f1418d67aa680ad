"""Worked values of the rules on independent batches, by hand from the published algorithms."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

from polytask.core.geometry import nearest_in_simplex
from polytask.core.state import Rule


def after(name: str, crossed: list[list[float]], calls: int = 1, **options: Any) -> Tensor:
    """The weights after some calls with one X_1 X_2^T."""
    tasks = ["a", "b", "c"][: len(crossed)]
    rule = Rule(name, tasks, **options)
    for _ in range(calls):
        found = rule(tasks, torch.tensor(crossed, dtype=torch.float64))
    return found


def test_modo_by_hand() -> None:
    """(0.5, 0.5) - 0.1 ((1.5, 2) + 0.5 (0.5, 0.5)) = (0.325, 0.275), and 0.2 more each is on the simplex.

    Then (0.525, 0.475) - 0.1 ((1.475, 1.9) + (0.2625, 0.2375)) = (0.35125, 0.26125), and 0.19375 more each.
    """
    crossed = [[1.0, 2.0], [0.0, 4.0]]
    once = after("modo", crossed, gamma=0.1, rho=0.5)
    torch.testing.assert_close(once, torch.tensor([0.525, 0.475], dtype=torch.float64))
    twice = after("modo", crossed, 2, gamma=0.1, rho=0.5)
    torch.testing.assert_close(twice, torch.tensor([0.545, 0.455], dtype=torch.float64))


def test_modo_leaves_a_task_out() -> None:
    """(0.5, 0.5) - (0, 2) = (0.5, -1.5), whose nearest point of the simplex is (1, 0)."""
    assert after("modo", [[0.0, 0.0], [0.0, 4.0]], gamma=1.0, rho=0.0).tolist() == [1.0, 0.0]


def test_absent_tasks_keep_their_share() -> None:
    """b and c hold two thirds: (0.5, 0.5) of them becomes (0.6, 0.4), so 0.4 and 8 / 30 of the whole."""
    rule = Rule("modo", ["a", "b", "c"], gamma=1.0, rho=0.0)
    found = rule(["b", "c"], torch.tensor([[0.0, 0.0], [0.0, 0.4]], dtype=torch.float64))
    torch.testing.assert_close(found, torch.tensor([0.6, 0.4], dtype=torch.float64))
    share = rule.state_dict()["state.share"]
    torch.testing.assert_close(share, torch.tensor([1 / 3, 0.4, 8 / 30], dtype=torch.float64))


def test_sdmgrad_by_hand() -> None:
    """Lengths 2 and 4, mean 3, so G = diag(4, 16) / 9, and the pull is 0.5 G (0.5, 0.5) = (1, 4) / 9.

    Step 1: (0.5, 0.5) - 0.5 (3, 12) / 9 = (1/3, -1/6), projected (3/4, 1/4). Step 2 has half of the velocity:
    (1/6, 2/3) + (1/3, 4/9) + (1/9, 4/9) = (11, 28) / 18, so (16, -19) / 36, projected (71, 1) / 72.
    The update has (w + 0.5 (0.5, 0.5)) / 1.5.
    """
    crossed, options = [[4.0, 0.0], [0.0, 16.0]], {"lam": 0.5, "learning_rate": 0.5}
    one = after("sdmgrad", crossed, iterations=1, **options)
    torch.testing.assert_close(one, torch.tensor([2 / 3, 1 / 3], dtype=torch.float64))
    two = after("sdmgrad", crossed, iterations=2, **options)
    torch.testing.assert_close(two, torch.tensor([89 / 108, 19 / 108], dtype=torch.float64))


def test_sdmgrad_keeps_its_weights_between_calls() -> None:
    """Without momentum two calls of one inner step are one call of two."""
    crossed, options = [[4.0, 1.0], [0.5, 9.0]], {"momentum": 0.0, "learning_rate": 0.1}
    found = after("sdmgrad", crossed, calls=2, iterations=1, **options)
    torch.testing.assert_close(found, after("sdmgrad", crossed, iterations=2, **options))


def test_sdmgrad_solves_its_problem() -> None:
    """With one batch in place of two, and steps enough: the w that minimises |w X + lambda p X|^2 over the simplex."""
    X = np.random.default_rng(3).standard_normal((3, 5))
    p = np.full(3, 1 / 3)

    def square(w: np.ndarray) -> float:
        return float(np.sum(((w + 0.3 * p) @ X) ** 2))

    convex = {"type": "eq", "fun": lambda w: w.sum() - 1}
    best = minimize(square, p, bounds=[(0, 1)] * 3, constraints=convex, tol=1e-14).x
    found = after("sdmgrad", (X @ X.T).tolist(), iterations=5000, momentum=0.0, learning_rate=0.2)
    np.testing.assert_allclose(found.numpy(), (best + 0.3 * p) / 1.3, atol=1e-6)


@pytest.mark.parametrize("point, wanted", [
    ([0.2, 0.8], [0.2, 0.8]),
    ([1.0, 1.0], [0.5, 0.5]),
    ([3.0, 0.0, -1.0], [1.0, 0.0, 0.0]),
    ([0.6, 0.6, 0.0], [0.5, 0.5, 0.0]),
    ([1e30, 0.0], [1.0, 0.0]),
    ([-5.0], [1.0]),
])  # fmt: skip
def test_nearest_in_simplex(point: list[float], wanted: list[float]) -> None:
    np.testing.assert_allclose(nearest_in_simplex(np.array(point)), wanted, atol=1e-15)
