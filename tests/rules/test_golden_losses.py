"""Worked values of the rules that weigh losses: by the papers' formulas or by hand, never by the code under test."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from polytask.balancing.go4align import group_means
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


def test_smooth_tchebycheff_of_the_losses_by_hand() -> None:
    """Above the ideal point by (log 3, 0): the softmax is (3/4, 1/4), times T."""
    rule = Rule("smooth_tchebycheff", TASKS, on="losses", ideal={"a": 1.0, "b": 1.0})
    assert weights(rule, 1 + math.log(3), 1.0) == pytest.approx([1.5, 0.5])
    rule = Rule("smooth_tchebycheff", TASKS, on="losses", mu=0.5)  # against the lowest seen
    assert weights(rule, 1.0, 1.0) == [1.0, 1.0]
    assert weights(rule, 1 + math.log(3), 1.0) == pytest.approx([1.8, 0.2])  # e^(log(3) / 0.5) = 9


def test_smooth_tchebycheff_takes_a_preference() -> None:
    """With preferences (1.5, 0.5) and mu = 1.5: exponents (log 4, 0), softmax (4/5, 1/5), times T and preference."""
    rule = Rule("smooth_tchebycheff", TASKS, on="losses", mu=1.5, ideal=0.0)
    found = rule(TASKS, tensor(math.log(4), 0.0), priority=tensor(1.5, 0.5)).tolist()
    assert found == pytest.approx([2.4, 0.2])


@pytest.mark.parametrize("mu, shares", [(1.0, (1 / 4, 3 / 4)), (0.5, (1 / 10, 9 / 10))])
def test_smooth_tchebycheff_of_the_log_losses_by_hand(mu: float, shares: tuple[float, float]) -> None:
    """One epoch of warm-up and the one that sets the units on sum log L; then losses of 1 and 3 units."""
    rule = Rule("smooth_tchebycheff", TASKS, mu=mu, warmup_epochs=1)
    assert weights(rule, 2.0, 4.0) == [0.5, 0.25]
    rule.after_epoch()
    assert weights(rule, 2.0, 4.0) == [0.5, 0.25]
    assert weights(rule, 4.0, 4.0) == [0.25, 0.25]  # means (3, 4)
    rule.after_epoch()
    assert weights(rule, 3.0, 12.0) == pytest.approx([2 * shares[0] / 3, 2 * shares[1] / 12])


def gradnorm_weights(rule: Rule, losses: Tensor, norms: Tensor) -> list[float]:
    output = rule(TASKS, losses, torch.diag(norms**2)).tolist()
    rule.advance()
    return output


def test_gradnorm_by_hand() -> None:
    """Norms 3 and 1 around a target of 2: Adam's first step is its rate, down for the first task, up for the second."""
    rule = Rule("gradnorm", TASKS)
    assert gradnorm_weights(rule, tensor(2.0, 2.0), tensor(3.0, 1.0)) == [1.0, 1.0]
    assert gradnorm_weights(rule, tensor(2.0, 2.0), tensor(3.0, 1.0)) == pytest.approx([0.975, 1.025], rel=1e-7)


def test_gradnorm_follows_the_rate_of_training() -> None:
    """Equal norms: nothing to do until the first loss halves; then targets (2/3)^1.5 and (4/3)^1.5 of the mean norm.

    Adam's second step after a first gradient of 0 is lr (0.1 / 0.19) / sqrt(0.001 / 0.001999).
    """
    rule = Rule("gradnorm", TASKS)
    assert gradnorm_weights(rule, tensor(2.0, 8.0), tensor(1.0, 1.0)) == [1.0, 1.0]
    assert gradnorm_weights(rule, tensor(1.0, 8.0), tensor(1.0, 1.0)) == [1.0, 1.0]
    step = 0.025 * (0.1 / 0.19) / math.sqrt(0.001 / 0.001999)
    assert gradnorm_weights(rule, tensor(1.0, 8.0), tensor(1.0, 1.0)) == pytest.approx([1 - step, 1 + step], rel=1e-7)


@pytest.mark.parametrize("scale", [1e-15, 1.0, 1e15])
def test_gradnorm_ends_where_the_norms_are_equal(scale: float) -> None:
    """Norms 3 and 1, equal rates: weights (1/2, 3/2)."""
    rule = Rule("gradnorm", TASKS, learning_rate=0.005)
    for _ in range(400):
        found = gradnorm_weights(rule, tensor(1.0, 1.0), tensor(3.0, 1.0) * scale)
    assert found == pytest.approx([0.5, 1.5], abs=0.02)


def test_famo_by_hand() -> None:
    """Equal logits: 1 / L normalised. The first loss halves, so its logit takes Adam's first step down."""
    rule = Rule("famo", TASKS)
    assert rule.looks_again
    assert weights(rule, 1.0, 4.0) == pytest.approx([0.8, 0.2])
    rule.after_step(TASKS, tensor(0.5, 4.0))
    share = 1 / (1 + math.exp(0.05))  # logits (-0.025, 0.025)
    assert weights(rule, 1.0, 1.0) == pytest.approx([share, 1 - share], rel=1e-7)


def test_famo_with_the_next_batch() -> None:
    rule = Rule("famo", TASKS, lookahead="next_batch")
    assert not rule.looks_again
    assert weights(rule, 1.0, 4.0) == pytest.approx([0.8, 0.2])
    rule.after_step(TASKS, tensor(9.0, 9.0))  # not looked at
    first, second = math.exp(-0.025) / 0.5, math.exp(0.025) / 4
    assert weights(rule, 0.5, 4.0) == pytest.approx([first / (first + second), second / (first + second)], rel=1e-7)


def test_famo_measures_losses_from_their_minimum() -> None:
    rule = Rule("famo", TASKS, min_losses={"a": -21})
    assert weights(rule, -20.0, 4.0) == pytest.approx([0.8, 0.2])
    with pytest.raises(BadValue, match=r"rule 'famo': the loss of task 'a' is -22\.0; allowed: at least -21, since"):
        weights(rule, -22.0, 4.0)


def test_famo_pulls_logits_back() -> None:
    """With losses that stay, decay alone moves the logits, to 0."""
    rule = Rule("famo", TASKS, decay=0.1)
    weights(rule, 1.0, 1.0)
    rule.after_step(TASKS, tensor(0.5, 1.0))
    for _ in range(300):
        found = weights(rule, 1.0, 1.0)
        rule.after_step(TASKS, tensor(1.0, 1.0))
    assert found == pytest.approx([0.5, 0.5], abs=0.01)


def test_focal_by_hand() -> None:
    """L = log 2: P = 1/2, and the derivative of (1 - e^-L)^2 L is 1/4 + 2 (1/2) (1/2) log 2."""
    found = weights(Rule("focal", TASKS), math.log(2), 0.0)
    assert found == pytest.approx([0.25 + 0.5 * math.log(2), 0.0])
    assert weights(Rule("focal", TASKS, gamma=0.0), math.log(2), 0.0) == [1.0, 1.0]


def test_focal_is_the_gradient_of_the_focal_loss() -> None:
    losses = tensor(0.01, 1.0, 30.0, 2000.0).requires_grad_()
    (wanted,) = torch.autograd.grad((((1 - torch.exp(-losses)) ** 1.5) * losses).sum(), losses)
    torch.testing.assert_close(Rule("focal", list("abcd"), gamma=1.5)(list("abcd"), losses.detach()), wanted)


def test_constrained_by_hand() -> None:
    """The multiplier of b starts at 0 and climbs by 0.1 (L - 1); it does not fall below 0."""
    rule = Rule("constrained", TASKS, thresholds={"b": 1.0}, learning_rate=0.1)
    losses = [(3.0, 2.0), (3.0, 0.5), (3.0, -3.0), (3.0, 1.0)]
    assert [weights(rule, *each)[1] for each in losses] == pytest.approx([0.0, 0.1, 0.05, 0.0])
    assert weights(rule, 9.0, 0.0)[0] == 1.0
    assert rule(TASKS, tensor(9.0, 0.0), priority=tensor(0.5, 1.5)).tolist() == [0.5, 0.0]


def test_constrained_finds_the_constrained_minimum() -> None:
    """min (x - 2)^2 with x^2 <= 1: x = 1, where 2 (x - 2) + m 2 x = 0 for m = 1."""
    rule, x = Rule("constrained", TASKS, thresholds={"b": 1.0}, learning_rate=0.1), 0.0
    for _ in range(300):
        found = weights(rule, (x - 2) ** 2, x**2)
        x -= 0.05 * (found[0] * 2 * (x - 2) + found[1] * 2 * x)
    assert x == pytest.approx(1.0, abs=1e-3)
    assert found[1] == pytest.approx(1.0, abs=1e-2)


def test_go4align_by_hand() -> None:
    """step_size log 2: shares 2^-risk, normalised, times sum of losses / loss."""
    rule = Rule("go4align", TASKS, step_size=math.log(2))
    assert weights(rule, 1.0, 2.0) == pytest.approx([2 / 3 * 3, 1 / 3 * 1.5])
    assert weights(rule, 1.0, 2.0) == pytest.approx([0.8 * 3, 0.2 * 1.5])  # risk (2, 4)


def test_go4align_groups() -> None:
    """Without a step the indicators of losses (1, 1.2, 4) are sum / (3 loss): 62/30, 62/36 and 62/120."""
    first, second, third = 62 / 30, 62 / 36, 62 / 120
    found = {k: weights(Rule("go4align", list("abc"), step_size=0.0, number_of_groups=k), 1.0, 1.2, 4.0) for k in
             (1, 2, 9)}  # fmt: skip
    assert found[1] == pytest.approx([(first + second + third) / 3] * 3)
    assert found[2] == pytest.approx([(first + second) / 2, (first + second) / 2, third])
    assert found[9] == pytest.approx([first, second, third])


@pytest.mark.parametrize("groups", [1, 2, 3])
def test_go4align_solves_k_means(groups: int) -> None:
    """Against every assignment of six numbers."""
    for draw in range(5):
        numbers = np.random.default_rng(draw).standard_normal(6)
        best = min(
            sum(((numbers[labels == k] - numbers[labels == k].mean()) ** 2).sum() for k in np.unique(labels))
            for labels in map(np.array, itertools.product(range(groups), repeat=6))
        )
        means = group_means(torch.from_numpy(numbers), groups).numpy()
        assert ((numbers - means) ** 2).sum() == pytest.approx(best)
        assert len(np.unique(means)) <= groups
