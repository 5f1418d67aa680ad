"""Worked values of the rules that weigh losses: by the papers' formulas or by hand, never by the code under test."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from polytask.core.errors import BadValue, UnknownName
from polytask.core.noise import Noise
from polytask.core.state import Rule

TASKS = ["a", "b"]


def tensor(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def weights(rule: Rule, *losses: float) -> list[float]:
    """One step."""
    output = rule(rule.tasks, tensor(*losses)).tolist()
    rule.advance()
    return output


def test_static_weights_by_task() -> None:
    assert weights(Rule("static", TASKS), 5.0, 0.1) == [1.0, 1.0]
    assert weights(Rule("static", TASKS, weights=0.5), 5.0, 0.1) == [0.5, 0.5]
    rule = Rule("static", ["a", "b", "c"], weights={"c": 0, "a": 2.5})
    assert weights(rule, 1.0, 1.0, 1.0) == [2.5, 1.0, 0.0]
    assert rule(["c", "b"], tensor(1.0, 1.0)).tolist() == [0.0, 1.0]


def test_static_weights_are_checked() -> None:
    with pytest.raises(UnknownName, match=r"rule 'static', weights: no task 'bb' \(did you mean 'b'\?\)"):
        Rule("static", TASKS, weights={"bb": 1})
    with pytest.raises(BadValue, match=r"weights is \{'b': -1\}; allowed: a number in \[0, inf\), or \{task: number\}"):
        Rule("static", TASKS, weights={"b": -1})


def test_random_loss_weighting_is_the_softmax_of_normal_numbers() -> None:
    rule = Rule("random_loss_weighting", ["a", "b", "c"], seed=7)
    for step in range(3):
        exponentials = [math.exp(z) for z in Noise(7, "rule", "random_loss_weighting", step).normal(3)]
        wanted = [each / sum(exponentials) for each in exponentials]
        assert weights(rule, 1.0, 2.0, 3.0) == pytest.approx(wanted)


def test_random_loss_weighting_favours_nobody() -> None:
    """By symmetry each weight is 1/3 on average; and the log of a ratio of two is normal with variance 2."""
    rule = Rule("random_loss_weighting", ["a", "b", "c"])
    drawn = np.array([weights(rule, 1.0, 1.0, 1.0) for _ in range(2000)])
    np.testing.assert_allclose(drawn.mean(0), 1 / 3, atol=0.02)
    assert np.log(drawn[:, 0] / drawn[:, 1]).var() == pytest.approx(2.0, rel=0.1)


def test_geometric_mean_by_hand() -> None:
    """Losses 4 and 9: the root is 6, its derivatives sqrt(9 / 4) / 2 = 3/4 and sqrt(4 / 9) / 2 = 1/3."""
    assert weights(Rule("geometric_mean", TASKS), 4.0, 9.0) == pytest.approx([0.75, 1 / 3])


def test_geometric_mean_is_the_gradient_of_the_root() -> None:
    losses = tensor(0.3, 2.0, 11.0, 0.02).requires_grad_()
    (wanted,) = torch.autograd.grad(losses.prod() ** 0.25, losses)
    torch.testing.assert_close(Rule("geometric_mean", list("abcd"))(list("abcd"), losses.detach()), wanted)


def test_geometric_mean_refuses_a_negative_loss() -> None:
    with pytest.raises(BadValue, match=r"rule 'geometric_mean': the loss of task 'b' is -1\.0; allowed: at least 0"):
        weights(Rule("geometric_mean", TASKS), 1.0, -1.0)
    assert weights(Rule("geometric_mean", TASKS), 1.0, 0.0) == pytest.approx([0.5e-15, 0.5e15])  # 0 counts as 1e-30


def test_imtl_l_by_hand() -> None:
    """s starts at 0: weight 1; Adam's first step has size lr against the gradient L - 1 of s."""
    rule = Rule("imtl_l", TASKS, learning_rate=0.1)
    assert weights(rule, 4.0, 0.25) == [1.0, 1.0]
    assert weights(rule, 4.0, 0.25) == pytest.approx([math.exp(-0.1), math.exp(0.1)], rel=1e-7)


def test_imtl_l_brings_every_loss_to_one() -> None:
    """e^s L - s is smallest where e^s L = 1."""
    rule = Rule("imtl_l", TASKS, learning_rate=0.05)
    for _ in range(600):
        found = weights(rule, 4.0, 0.25)
    assert found == pytest.approx([0.25, 4.0], rel=1e-3)
