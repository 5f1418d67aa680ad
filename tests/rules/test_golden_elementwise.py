"""Worked values of the elementwise rules, by hand from the papers' definitions."""

from typing import Any

import pytest
import torch
from torch import Tensor

from polytask.core.noise import Noise
from polytask.core.state import Rule

TASKS = ["a", "b", "c", "d", "e"]


def combined(name: str, *rows: list[float], **options: Any) -> Tensor:
    stack = torch.tensor(rows, dtype=torch.float64)
    return Rule(name, TASKS[: len(rows)], **options)(TASKS[: len(rows)], stack)


def test_graddrop_draws_the_sign() -> None:
    """Values 3 and -1: positive with P = (1 + 2 / 4) / 2 = 3/4; values -3 and 1 the other way round."""
    first, second = [3.0, -3.0] * 500, [-1.0, 1.0] * 500
    drawn = Noise(5, "rule", "graddrop", 0).uniform(1000) <= 0.75
    wanted = [(3.0 if keep else -1.0) * (-1) ** i for i, keep in enumerate(drawn.tolist())]
    assert combined("graddrop", first, second, seed=5).tolist() == wanted
    assert drawn.mean() == pytest.approx(0.75, abs=0.05)


def test_graddrop_keeps_all_where_tasks_agree() -> None:
    assert combined("graddrop", [3.0, 0.0, -2.0], [1.0, 0.0, 0.0]).tolist() == [4.0, 0.0, -2.0]


def test_graddrop_leaks_by_task() -> None:
    """Of 3 and -1 the kept sign comes whole, the other by its task's leak."""
    found = set(combined("graddrop", [3.0] * 50, [-1.0] * 50, leak={"a": 0.5}).tolist())
    assert found == {3.0, 0.5}
    assert set(combined("graddrop", [3.0] * 50, [-1.0] * 50, leak=1).tolist()) == {2.0}


def test_trimmed_mean_by_hand() -> None:
    """A quarter of four values at each end is one."""
    assert combined("trimmed_mean", [1.0, 5.0], [100.0, 5.0], [4.0, -9.0], [2.0, 7.0]).tolist() == [3.0, 5.0]
    assert combined("trimmed_mean", [1.0], [100.0], [4.0]).tolist() == [35.0]  # too few to trim


def test_trimmed_mean_by_two_fifths_is_the_median_of_five() -> None:
    assert combined("trimmed_mean", [9.0], [1.0], [4.0], [-8.0], [2.0], trim=0.4).tolist() == [2.0]


def test_and_mask_by_hand() -> None:
    """Signs agree in the first element only; a zero agrees with nobody."""
    rows = [[1.0, 3.0, 0.0, 2.0], [2.0, 1.0, 4.0, -2.0], [3.0, -1.0, 2.0, 3.0]]
    assert combined("and_mask", *rows).tolist() == [2.0, 0.0, 0.0, 0.0]
    assert combined("and_mask", *rows, threshold=0.5).tolist() == [2.0, 0.0, 2.0, 0.0]
    third = combined("and_mask", *rows, threshold=1 / 3)  # signs 3, 1, 2 and 1 of 3
    assert third.tolist() == [2.0, 1.0, 2.0, 1.0]
    assert combined("and_mask", *rows, threshold=0).tolist() == third.tolist()


@pytest.mark.parametrize("name", ["graddrop", "trimmed_mean", "and_mask", "agr_sum", "agr_rand"])
@pytest.mark.parametrize("scale", [1e-15, 1e15])
def test_scale_does_not_matter_in_single_precision(name: str, scale: float) -> None:
    stack = torch.from_numpy(Noise(0).normal(5 * 40).reshape(5, 40))
    wanted = Rule(name, TASKS)(TASKS, stack)
    found = Rule(name, TASKS)(TASKS, (stack * scale).float())
    torch.testing.assert_close(found.double() / scale, wanted, rtol=1e-5, atol=1e-5)


def test_agr_sum_by_hand() -> None:
    """Signs agree in the first element, and in the last, which is 0 for all."""
    rows = [[1.0, 3.0, 0.0, 0.0], [2.0, 1.0, 4.0, 0.0], [3.0, -1.0, 2.0, 0.0]]
    assert combined("agr_sum", *rows).tolist() == [6.0, 0.0, 0.0, 0.0]


def test_agr_rand_by_hand() -> None:
    """Signs agree on 3 and -5, whose mean magnitude is 4; the numbers have the sign of the first task that has one."""
    drawn = Noise(2, "rule", "agr_rand", 0).normal(4)
    found = combined("agr_rand", [1.0, -2.0, -3.0, 0.0], [2.0, -3.0, 1.0, 7.0], seed=2)
    assert found.tolist() == [3.0, -5.0, -4 * drawn[2], 4 * drawn[3]]
    assert combined("agr_rand", [1.0], [-1.0]).tolist() == [0.0]  # no magnitude to draw with
