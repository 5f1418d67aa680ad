"""How a gate turns its scores into weights of the experts: soft, the k largest, one, DSelect-k's binary codes, or soft
at first and sparse later.

A selection is the second of a gate's two axes; the first, what the scores depend on, is in `gates.py`.
"""

import math
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch.nn import functional

from polytask.core.errors import BadValue
from polytask.core.validation import Strict


class Selection(Strict):
    """How scores become weights; a subclass has `kind`, its options and `weights`, which is abstract here, and where it
    `counts` also `weights_after`.

    `weights` are at least 0 and sum to 1 over the experts; `penalty` is what the method adds to the task's loss.
    `counts`: whether weights change with the number of passes that the model has begun in training.
    """

    counts: ClassVar[bool] = False
    kind: str

    def scores(self, experts: int) -> int:
        """How many scores the gate must give for this many experts; BadValue if it cannot choose among them."""
        return experts

    def weights(self, scores: Float[Tensor, "*rows scores"], experts: int) -> Float[Tensor, "*rows experts"]:
        raise NotImplementedError

    def weights_after(
        self, passes: Tensor, scores: Float[Tensor, "*rows scores"], experts: int
    ) -> Float[Tensor, "*rows experts"]:
        """The weights in pass number `passes` in training, or after it, for a selection that `counts`."""
        raise NotImplementedError

    def penalty(self, scores: Float[Tensor, "*rows scores"], experts: int) -> Tensor | None:
        """A 0-d term for the task's loss; None where the method has none."""
        return None

    def reset(self, weight: Float[Tensor, "scores inputs"]) -> None:
        """Starts what gives the scores, in place, from torch's generator."""
        bound = 1 / math.sqrt(weight.shape[-1])
        nn.init.uniform_(weight, -bound, bound)


class Softmax(Selection):
    """Every expert, by the softmax of its score."""

    kind: Literal["softmax"] = "softmax"

    def weights(self, scores: Float[Tensor, "*rows experts"], experts: int) -> Float[Tensor, "*rows experts"]:
        return scores.softmax(-1)


class TopK(Selection):
    """The softmax over the k largest scores, zero elsewhere.

    Source: Shazeer et al. 2017, arXiv:1701.06538, its noisy top-k gating.
    Departures: no noise is added to the scores; equal scores go to the expert with the lower index.
    """

    kind: Literal["top_k"] = "top_k"
    k: PositiveInt = 2

    def scores(self, experts: int) -> int:
        if self.k > experts:
            raise BadValue("gate top_k: k", self.k, f"at most the number of experts, {experts}")
        return experts

    def weights(self, scores: Float[Tensor, "*rows experts"], experts: int) -> Float[Tensor, "*rows experts"]:
        chosen = scores.sort(dim=-1, descending=True, stable=True).indices[..., : self.k]
        left_out = torch.ones_like(scores, dtype=torch.bool).scatter(-1, chosen, False)
        return scores.masked_fill(left_out, -math.inf).softmax(-1)


class Hard(Selection):
    """One expert, the one with the largest score; the gradient is the softmax's (straight-through).

    Source: Bengio, Leonard and Courville 2013, arXiv:1308.3432, the straight-through estimator.
    Departures: none that is known.
    """

    kind: Literal["hard"] = "hard"

    def weights(self, scores: Float[Tensor, "*rows experts"], experts: int) -> Float[Tensor, "*rows experts"]:
        soft = scores.softmax(-1)
        chosen = functional.one_hot(soft.argmax(-1), experts).to(soft)
        return chosen - soft.detach() + soft


class DSelectK(Selection):
    """At most k experts through smooth binary codes: w = sum_i softmax(a)_i r(z_i), r the product over bits.

    Source: Hazimeh et al. 2021, arXiv:2106.03760: the smooth-step of its section 3, the entropy regulariser that
    pushes codes to be binary, and the term that keeps codes among the existing experts.
    Departures: for a number of experts that is no power of two the weights are normalised over the experts that exist.
    """

    kind: Literal["dselect_k"] = "dselect_k"
    k: PositiveInt = 2
    smoothness: float = Field(default=1.0, gt=0)
    entropy: float = Field(default=1e-3, ge=0)

    def scores(self, experts: int) -> int:
        if self.k > experts:
            raise BadValue("gate dselect_k: k", self.k, f"at most the number of experts, {experts}")
        return self.k * (1 + _bits(experts))

    def reset(self, weight: Float[Tensor, "scores inputs"]) -> None:
        """Codes start near the middle of the step, where it is steepest: a code that is binary already cannot move."""
        super().reset(weight)
        nn.init.uniform_(weight[self.k :], -self.smoothness / 100, self.smoothness / 100)

    def weights(self, scores: Float[Tensor, "*rows scores"], experts: int) -> Float[Tensor, "*rows experts"]:
        mixture = scores[..., : self.k].softmax(-1)
        chosen = self._codes(scores, experts)[..., :experts]
        weights = (mixture.unsqueeze(-1) * chosen).sum(-2)
        if experts == 1 << _bits(experts):
            return weights
        return weights / weights.sum(-1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)

    def penalty(self, scores: Float[Tensor, "*rows scores"], experts: int) -> Tensor | None:
        if self.entropy == 0:
            return None
        codes = self._codes(scores, experts)
        positive = torch.where(codes > 0, codes, 1.0)  # 0 log 0 is 0, but its slope is infinite, times 0 at the end
        total = -(positive * positive.log()).sum((-2, -1)).mean()
        if experts < codes.shape[-1]:
            inside = codes[..., :experts].sum(-1).clamp(min=1e-6)
            total = total + (1 / inside).sum(-1).mean()
        return self.entropy * total

    def _codes(self, scores: Float[Tensor, "*rows scores"], experts: int) -> Float[Tensor, "*rows k codes"]:
        """r: for each of the k selectors the product over bits, one value a code."""
        bits = _bits(experts)
        ones = smooth_step(scores[..., self.k :].unflatten(-1, (self.k, bits)), self.smoothness)
        codes = torch.ones_like(scores[..., : self.k]).unsqueeze(-1)
        for bit in range(bits):  # the code's lowest bit varies fastest
            one = ones[..., bit : bit + 1]
            codes = torch.cat([codes * (1 - one), codes * one], dim=-1)
        return codes


class DenseToSparse(Selection):
    """softmax(scores / temperature), and experts with a weight below a threshold drop out, never the best one: the
    temperature falls geometrically from `warm` to `cold` and the threshold rises from 0, from pass `begin` to `end`.

    Source: Nie et al. 2021, arXiv:2112.14397 (EvoMoE), its dense-to-sparse gate.
    Departures: no Gumbel noise; the temperature falls geometrically; the numbers are ours, as the paper's text was not
    at hand. A pass is one of the model's in training mode.
    """

    counts: ClassVar[bool] = True
    kind: Literal["dense_to_sparse"] = "dense_to_sparse"
    begin: int = Field(default=0, ge=0)
    end: PositiveInt = 2000
    warm: float = Field(default=2.0, gt=0)
    cold: float = Field(default=0.3, gt=0)
    threshold: float = Field(default=0.05, ge=0, lt=1)

    def scores(self, experts: int) -> int:
        if self.end <= self.begin:
            raise BadValue("gate dense_to_sparse: end", self.end, f"more than begin, {self.begin}")
        return experts

    def weights(self, scores: Float[Tensor, "*rows experts"], experts: int) -> Float[Tensor, "*rows experts"]:
        """Those at the end."""
        return self.weights_after(torch.tensor(self.end, device=scores.device), scores, experts)

    def weights_after(
        self, passes: Tensor, scores: Float[Tensor, "*rows experts"], experts: int
    ) -> Float[Tensor, "*rows experts"]:
        done = ((passes - self.begin) / (self.end - self.begin)).clamp(0, 1)
        weights = (scores / (self.warm * (self.cold / self.warm) ** done)).softmax(-1)
        dropped = (weights < self.threshold * done) & (weights < weights.amax(-1, keepdim=True))
        weights = weights.masked_fill(dropped, 0)
        return weights / weights.sum(-1, keepdim=True)


def smooth_step(x: Tensor, smoothness: float) -> Tensor:
    """0 up to -smoothness / 2, 1 from smoothness / 2, a cubic with a continuous slope between."""
    inside = -2 / smoothness**3 * x**3 + 3 / (2 * smoothness) * x + 0.5
    return torch.where(x <= -smoothness / 2, 0.0, torch.where(x >= smoothness / 2, 1.0, inside)).to(x.dtype)


def _bits(experts: int) -> int:
    return max(1, math.ceil(math.log2(experts)))


SELECTIONS: dict[str, type[Selection]] = {
    "softmax": Softmax,
    "top_k": TopK,
    "hard": Hard,
    "dselect_k": DSelectK,
    "dense_to_sparse": DenseToSparse,
}
