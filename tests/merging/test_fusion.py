"""Dynamic logit fusion against sums written out in float64 and searched by other means."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from polytask.core.errors import BadValue, NotFinite
from polytask.core.noise import Noise
from polytask.merging.fusion import fuse

VOCABULARY = 11


def drawn(key: str, *shape: int, scale: float = 1.5) -> Tensor:
    return torch.from_numpy(Noise(0, "fusion", key).normal(math.prod(shape))).view(shape).float() * scale


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def divergence(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    return (p * np.log(p / q)).sum(-1)


def misfits(weights: np.ndarray, large: Tensor, base: Tensor, experts: list[Tensor]) -> np.ndarray:
    """The paper's sum for one row of logits, written out in float64, for every row [T] of weights."""
    m, s, *t = (own.double().numpy() for own in (large, base, *experts))
    fused = softmax(m + sum(weights[:, [number]] * (own - s) for number, own in enumerate(t)))
    p, q = softmax(m), softmax(s)
    return sum(
        (divergence(fused, p) - divergence(softmax(own), q)) ** 2
        + (divergence(p, fused) - divergence(q, softmax(own))) ** 2
        for own in t
    )


def misfit(weights: list[float], large: Tensor, base: Tensor, experts: list[Tensor]) -> float:
    return float(misfits(np.array([weights]), large, base, experts)[0])


def best_alone(number: int, large: Tensor, base: Tensor, experts: list[Tensor]) -> tuple[float, float]:
    """(the least misfit with one expert, its weight), of 4001 weights."""
    grid = np.zeros((4001, len(experts)))
    grid[:, number] = np.linspace(0, 2, 4001)
    values = misfits(grid, large, base, experts)
    return float(values.min()), float(grid[values.argmin(), number])


@pytest.mark.parametrize("scale", [0.1, 1.5, 6.0])
def test_one_expert_has_the_best_weight(scale: float) -> None:
    large, base, expert = (drawn(key, 12, VOCABULARY, scale=scale) for key in ("large", "base", "expert"))
    expert = base + 0.5 * expert
    found = fuse(large, base, [expert])
    assert found.weights.shape == (12, 1)
    for row in range(12):
        given = (large[row], base[row], [expert[row]])
        least, weight = best_alone(0, *given)
        own = float(found.weights[row, 0])
        assert misfit([own], *given) <= least + 1e-4 * (least + scale**2 * 1e-2)
        assert own == pytest.approx(weight, abs=5e-3)
        wanted = large[row] + own * (expert[row] - base[row])
        torch.testing.assert_close(found.logits[row], wanted)


def test_of_several_experts_the_best_one_is_taken() -> None:
    large, base = drawn("large", 8, VOCABULARY), drawn("base", 8, VOCABULARY)
    experts = [base + drawn(f"expert {number}", 8, VOCABULARY, scale=1.0) for number in range(3)]
    weights = fuse(large, base, experts).weights
    assert len({int(row.argmax()) for row in weights}) > 1
    for row in range(8):
        given = (large[row], base[row], [own[row] for own in experts])
        alone = [best_alone(number, *given) for number in range(3)]
        chosen = min(range(3), key=lambda number: alone[number][0])
        wanted = [alone[chosen][1] if number == chosen else 0.0 for number in range(3)]
        assert weights[row].tolist() == pytest.approx(wanted, abs=5e-3)


@pytest.mark.parametrize("count", [2, 3])
def test_together_is_never_worse_and_near_the_least_of_all(count: int) -> None:
    """The least of a grid; what the search in turns lacks to it is little of what it has gained."""
    large, base = drawn("large", 6, VOCABULARY), drawn("base", 6, VOCABULARY)
    experts = [base + drawn(f"expert {number}", 6, VOCABULARY, scale=1.0) for number in range(count)]
    alone, joint = (fuse(large, base, experts, together=together).weights for together in (False, True))
    grid = np.stack(np.meshgrid(*[np.linspace(0, 2, 41)] * count), -1).reshape(-1, count)
    gained, lacking = 0.0, 0.0
    for row in range(6):
        given = (large[row], base[row], [own[row] for own in experts])
        before, after = (misfit(weights[row].tolist(), *given) for weights in (alone, joint))
        assert after <= before + 1e-6
        gained += before - after
        lacking += max(after - float(misfits(grid, *given).min()), 0)
    assert int(((joint > 0).sum(1) > 1).sum()) >= 3
    assert gained > 0.01
    assert lacking < gained


def test_a_large_model_that_is_the_base_becomes_the_expert() -> None:
    """Then both differences are 0 at weight 1, and the fused logits are the expert's."""
    base, expert = drawn("base", 4, VOCABULARY), drawn("expert", 4, VOCABULARY)
    found = fuse(base, base, [expert])
    torch.testing.assert_close(found.weights, torch.ones(4, 1), rtol=0, atol=2e-4)
    torch.testing.assert_close(found.logits, expert, rtol=0, atol=5e-3)


def test_two_tokens_by_hand() -> None:
    """Large: even odds, so KL(p, fused) is log cosh(z / 2) with z the difference of the fused logits, and KL(fused, p)
    is (z / 2) tanh(z / 2) - log cosh(z / 2). The base has even odds too, its expert a difference of 1: with the
    same z, at weight 1, the sums vanish. Of an expert with a difference of 2 they do so at weight 1 again, not 1/2."""
    even = torch.zeros(1, 2)
    one, two = torch.tensor([[1.0, 0.0]]), torch.tensor([[2.0, 0.0]])
    for expert in (one, two):
        assert float(fuse(even, even, [expert]).weights) == pytest.approx(1.0, abs=4e-4)
    z = 1.0
    target = (z / 2 * math.tanh(z / 2) - math.log(math.cosh(z / 2)), math.log(math.cosh(z / 2)))
    p, q = softmax(np.zeros(2)), softmax(np.array([1.0, 0.0]))
    assert (divergence(q, p), divergence(p, q)) == pytest.approx(target)
    assert misfit([0.5], even[0], even[0], [two[0]]) > misfit([1.0], even[0], even[0], [two[0]])


def test_an_expert_that_learned_nothing_changes_nothing() -> None:
    large, base = drawn("large", 3, VOCABULARY), drawn("base", 3, VOCABULARY)
    for together in (False, True):
        found = fuse(large, base, [base, base], together=together)
        assert torch.equal(found.logits, large)
        assert not bool(found.weights.any())


def test_a_weight_has_a_bound() -> None:
    """A large model that is sure of a token is moved little by any weight, so the bound is reached."""
    large = torch.tensor([[6.0, 0.0, 0.0]])
    base, expert = torch.zeros(1, 3), torch.tensor([[0.0, 1.0, 0.0]])
    assert float(fuse(large, base, [expert]).weights) == 2.0
    assert float(fuse(large, base, [expert], most=0.7).weights) == pytest.approx(0.7)


def test_rows_shapes_and_types() -> None:
    large, base, expert = (drawn(key, 2, 3, VOCABULARY) for key in ("large", "base", "expert"))
    whole = fuse(large, base, [expert])
    assert (whole.logits.shape, whole.weights.shape) == ((2, 3, VOCABULARY), (2, 3, 1))
    one = fuse(large[1, 2], base[1, 2], [expert[1, 2]])
    torch.testing.assert_close(one.weights, whole.weights[1, 2])
    shifted = fuse(large + 3.0, base - 5.0, [expert + 7.0])
    torch.testing.assert_close(shifted.weights, whole.weights, rtol=0, atol=2e-3)
    half = fuse(large.bfloat16(), base.bfloat16(), [expert.bfloat16()])
    assert half.logits.dtype == half.weights.dtype == torch.float32
    assert fuse(large.double(), base, [expert]).logits.dtype == torch.float64


def test_gradients_take_the_weights_as_given() -> None:
    large, base, expert = (drawn(key, 2, VOCABULARY).requires_grad_() for key in ("large", "base", "expert"))
    found = fuse(large, base, [expert])
    found.logits.sum().backward()
    assert not found.weights.requires_grad
    torch.testing.assert_close(expert.grad, found.weights.expand(2, VOCABULARY))
    torch.testing.assert_close(base.grad, -expert.grad)


def test_bad_input_is_one_line() -> None:
    logits = torch.zeros(2, 3)
    with pytest.raises(BadValue, match="the number of experts is 0; allowed: at least 1"):
        fuse(logits, logits, [])
    with pytest.raises(BadValue, match=r"logits of expert 1 is \[2, 2\]; allowed: \[2, 3\], as the large model's"):
        fuse(logits, logits, [logits, torch.zeros(2, 2)])
    with pytest.raises(BadValue, match=r"most is 0; allowed: a number in \(0, inf\)"):
        fuse(logits, logits, [logits], most=0)
    with pytest.raises(NotFinite, match="a logit of the base is NaN or infinite"):
        fuse(logits, logits * math.nan, [logits])
