"""Worked values of the rules that remember gradients or their lengths, by hand from the papers' formulas."""

import math

import pytest
import torch
from torch import Tensor

from polytask.core.errors import BadValue, UnknownName
from polytask.core.state import Rule
from polytask.testing.trial import Outcome, call

TASKS = ["a", "b"]


def step(rule: Rule, vectors: list[list[float]], losses: list[float] | None = None) -> Outcome:
    X = torch.tensor(vectors, dtype=torch.float64)
    return call(rule, rule.tasks, torch.tensor(losses or [1.0] * len(X), dtype=torch.float64), X)


def close(found: Tensor | None, wanted: list[float]) -> None:
    assert found is not None
    torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float64))


def test_moco_by_hand() -> None:
    """y = (1, 0), (0, 0.5), G = diag(1, 0.25): (0.5, 0.5) - 0.1 (0.5, 0.125) = (0.45, 0.4875), and 0.03125 more each.

    Then the gradients are 0 and y halves: (0.48125, 0.51875) - 0.1 (0.1203125, 0.032421875), projected.
    """
    rule = Rule("moco", TASKS, beta=0.5, beta_decay=0.0, gamma=0.1, gamma_decay=0.0)
    found = step(rule, [[2.0, 0.0], [0.0, 1.0]])
    close(found.weights, [0.48125, 0.51875])
    close(found.combined, [0.48125, 0.259375])
    found = step(rule, [[0.0, 0.0], [0.0, 0.0]])
    close(found.weights, [0.47685546875, 0.52314453125])
    close(found.combined, [0.238427734375, 0.1307861328125])


def test_moco_takes_smaller_steps_with_time() -> None:
    """beta_2 = 0.5 / sqrt(2): of a gradient that was 4 and is 0 now, y_2 = 2 (1 - beta_2)."""
    rule = Rule("moco", ["a"], beta=0.5)
    close(step(rule, [[4.0]]).combined, [2.0])
    close(step(rule, [[0.0]]).combined, [2 * (1 - 0.5 / math.sqrt(2))])


def test_moco_can_give_gradients_the_length_of_their_loss() -> None:
    """(3, 4) of length 5 and loss 10 counts as (6, 8), and half of that is averaged in."""
    close(step(Rule("moco", ["a"], lengths="loss"), [[3.0, 4.0]], [10.0]).combined, [3.0, 4.0])


def test_db_mtl_by_hand() -> None:
    """Gradients of the logarithms (1, 0) and (0, 3); halves of them, of lengths 0.5 and 1.5, both brought to 1.5.

    Then (1, 0) and (0, 0): averages (0.75, 0) and (0, 0.75).
    """
    rule = Rule("db_mtl", TASKS, beta=0.5)
    found = step(rule, [[2.0, 0.0], [0.0, 12.0]], [2.0, 4.0])
    close(found.weights, [3.0, 1.0])
    close(found.combined, [1.5, 1.5])
    close(step(rule, [[1.0, 0.0], [0.0, 0.0]], [1.0, 1.0]).combined, [0.75, 0.75])


def test_db_mtl_forgets_more_with_time() -> None:
    """beta_2 = 0.5 / 2: y_1 = 0.5 and y_2 = 0 + 0.25 y_1."""
    rule = Rule("db_mtl", ["a"], beta=0.5, beta_decay=1.0)
    close(step(rule, [[1.0]]).combined, [0.5])
    close(step(rule, [[0.0]]).combined, [0.125])


def test_db_mtl_refuses_a_negative_loss() -> None:
    with pytest.raises(BadValue, match="the loss of task 'b' is -1"):
        step(Rule("db_mtl", TASKS), [[1.0], [1.0]], [1.0, -1.0])


def test_excess_mtl_by_hand() -> None:
    """Risks 3 + 4 and 1, then 16 / 5 + 9 / 5 = 5 with roots (5, 5), and 1 / sqrt 2: the weights go with exp(5 / 7) and
    exp(1 / sqrt 2); the gradients themselves are combined."""
    rule = Rule("excess_mtl", TASKS, learning_rate=1.0)
    found = step(rule, [[3.0, 4.0], [1.0, 0.0]])
    close(found.weights, [0.5, 0.5])
    close(found.combined, [2.0, 2.0])
    first, second = math.exp(5 / 7), math.exp(math.sqrt(0.5))
    close(step(rule, [[4.0, 3.0], [1.0, 0.0]]).weights, [first / (first + second), second / (first + second)])


def test_excess_mtl_waits_for_a_risk_to_compare_with() -> None:
    rule = Rule("excess_mtl", TASKS, learning_rate=1.0)
    close(step(rule, [[0.0], [1.0]]).weights, [0.5, 0.5])
    close(step(rule, [[1.0], [0.0]]).weights, [0.5, 0.5])  # a has its first, b no risk now
    grown = math.exp(math.sqrt(0.5))  # 1 / sqrt(1 + 1) of its first risk, 1
    close(step(rule, [[1.0], [0.0]]).weights, [grown / (grown + 1), 1 / (grown + 1)])


def test_metabalance_by_hand() -> None:
    """Lengths 2 and 8: 0.5 * 2 / 8 + 0.5; with 4 and 1 the averages are 0.9 (0.2, 0.8) + 0.1 (4, 1) = (0.58, 0.82)."""
    rule = Rule("metabalance", TASKS, relax=0.5)
    close(step(rule, [[2.0], [8.0]]).weights, [1.0, 0.625])
    close(step(rule, [[4.0], [1.0]]).weights, [1.0, 0.5 * 0.58 / 0.82 + 0.5])


def test_metabalance_takes_any_task_as_its_target() -> None:
    close(step(Rule("metabalance", TASKS, relax=0.5, target="b"), [[2.0], [8.0]]).weights, [2.5, 1.0])
    close(step(Rule("metabalance", TASKS, relax=1.0, target="b"), [[2.0], [8.0]]).combined, [16.0])
    with pytest.raises(UnknownName, match="no task 'c'"):
        Rule("metabalance", TASKS, target="c")


def test_metabalance_leaves_gradients_alone_without_its_target() -> None:
    rule = Rule("metabalance", ["a", "b", "c"])
    close(rule(["b", "c"], torch.tensor([[4.0, 0.0], [0.0, 9.0]], dtype=torch.float64)), [1.0, 1.0])
