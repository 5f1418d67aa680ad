"""Dynamic logit fusion: small experts shift a large model's logits, as far as they moved from their own small base.

Source      Fan et al. 2024, arXiv:2406.15480: the logits large + sum_t a_t (expert_t - base), and for every row and
            decoding step those a_t in [0, 2] for which the fused distribution lies from the large model's as far as the
            experts' from the base's, in both directions: the least sum over experts of
            (KL(fused, large) - KL(expert_t, base))^2 + (KL(large, fused) - KL(base, expert_t))^2.
            Of several experts only the best one is applied in a step, as in the paper's experiments.
Departures  the paper was read in a copy that could not be checked, and its code not at all. Its search over a is given
            there in outline; here eleven values are tried, then four times the space between the best one's
            neighbours is divided in the same way, which leaves a to within 0.0004. Where several do equally well the
            least is taken. `together` searches all experts' weights, one after the other in turns from the best
            single one: every turn lowers the sum or leaves it, but the least of all is not promised.
Cost        55 softmaxes of a row of logits an expert; `together` has SWEEPS times as many besides.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from polytask.core.constraints import Interval
from polytask.core.errors import BadValue, NotFinite

POINTS, ROUNDS, SWEEPS = 11, 5, 4
MOST = 2.0
"""The paper's bound of a weight."""


class Fused(NamedTuple):
    """Fused logits, in float32 at least, and the weight of each expert."""

    logits: Float[Tensor, "*B V"]
    weights: Float[Tensor, "*B T"]


class _Target(NamedTuple):
    """KL(expert_t, base) and KL(base, expert_t)."""

    there: Float[Tensor, "T R"]
    back: Float[Tensor, "T R"]


def fuse(
    large: Float[Tensor, "*B V"],
    base: Float[Tensor, "*B V"],
    experts: Sequence[Tensor],
    *,
    most: float = MOST,
    together: bool = False,
) -> Fused:
    """One distribution a row: the next token's, or a classifier's over classes. Gradients take the weights as given.

    Args:
        large: its logits.
        base: logits of the small model that the experts were tuned from, of the same tokens.
        experts: the experts' logits.
        most: of any weight; the least is 0.
        together: several experts at once, instead of the best one for each row.

    Raises:
        BadValue: shapes differ, or there is no expert.
        NotFinite: a logit is.
    """
    _check(large, base, experts, most)
    working = torch.promote_types(large.dtype, torch.float32)
    rows = large.reshape(-1, large.shape[-1]).to(working)
    origin = base.reshape(rows.shape).to(rows)
    changes = torch.stack([own.reshape(rows.shape).to(rows) - origin for own in experts])
    with torch.no_grad():
        target = _target(origin, changes)
        log_p = F.log_softmax(rows, -1)
        centred = changes - (log_p.exp() * changes).sum(-1, keepdim=True)
        weights = _best_single(log_p, centred, target, most)
        if together and len(experts) > 1:
            weights = _in_turns(weights, log_p, centred, target, most)
    logits = rows + torch.einsum("tr,trv->rv", weights, changes)
    return Fused(logits.view(large.shape), weights.T.reshape(*large.shape[:-1], len(experts)))


def objective(log_p: Float[Tensor, "R V"], shift: Float[Tensor, "R V"], target: _Target) -> Float[Tensor, "R"]:
    """The sum of squared differences, of log p and what is added to it; the shift's mean under p is 0."""
    moved = log_p + shift
    total = moved.logsumexp(-1)  # KL(p, moved), as the shift has mean 0
    there = ((moved - total.unsqueeze(-1)).exp() * shift).sum(-1) - total
    return ((there - target.there).square() + (total - target.back).square()).sum(0)


def _target(origin: Tensor, changes: Tensor) -> _Target:
    log_q = F.log_softmax(origin, -1)
    log_t = F.log_softmax(origin + changes, -1)
    return _Target((log_t.exp() * (log_t - log_q)).sum(-1), (log_q.exp() * (log_q - log_t)).sum(-1))


def _best_single(log_p: Tensor, changes: Tensor, target: _Target, most: float) -> Float[Tensor, "T R"]:
    """For every row the best expert's weight, and 0 for the others."""
    nothing = torch.zeros_like(log_p)
    found = [_along(change, nothing, log_p, target, most) for change in changes]
    weights, values = (torch.stack(parts) for parts in zip(*found, strict=True))
    chosen = F.one_hot(values.argmin(0), len(changes)).T
    return weights * chosen


def _in_turns(weights: Tensor, log_p: Tensor, changes: Tensor, target: _Target, most: float) -> Float[Tensor, "T R"]:
    """Each expert's weight anew with the others' as they are, where that is better."""
    weights = weights.clone()
    shift = torch.einsum("tr,trv->rv", weights, changes)
    value = objective(log_p, shift, target)
    for _ in range(SWEEPS):
        for number, change in enumerate(changes):
            others = shift - weights[number].unsqueeze(-1) * change
            own, found = _along(change, others, log_p, target, most)
            better = found < value
            weights[number] = torch.where(better, own, weights[number])
            value = torch.where(better, found, value)
            shift = others + weights[number].unsqueeze(-1) * change
    return weights


def _along(
    change: Tensor, others: Tensor, log_p: Tensor, target: _Target, most: float
) -> tuple[Float[Tensor, "R"], Float[Tensor, "R"]]:
    """(the weight of one expert beside what the others add, the objective there) of every row."""
    low, high = torch.zeros_like(log_p[:, 0]), torch.full_like(log_p[:, 0], most)
    steps = torch.linspace(0, 1, POINTS, dtype=log_p.dtype, device=log_p.device).unsqueeze(-1)
    best = value = low
    for _ in range(ROUNDS):
        tried = low + (high - low) * steps
        values = torch.stack([objective(log_p, others + own.unsqueeze(-1) * change, target) for own in tried])
        value, place = values.min(0)
        best = tried.gather(0, place.unsqueeze(0)).squeeze(0)
        low, high = (tried.gather(0, (place + way).clamp(0, POINTS - 1).unsqueeze(0)).squeeze(0) for way in (-1, 1))
    return best, value


def _check(large: Tensor, base: Tensor, experts: Sequence[Tensor], most: float) -> None:
    if not len(experts):
        raise BadValue("the number of experts", 0, "at least 1", "logit fusion")
    bound = Interval(0, open="left")
    if not bound.allows(most):
        raise BadValue("most", most, str(bound), "logit fusion")
    named = {"the large model": large, "the base": base}
    named |= {f"expert {number}": own for number, own in enumerate(experts)}
    for name, logits in named.items():
        if logits.shape != large.shape:
            allowed = f"{list(large.shape)}, as the large model's"
            raise BadValue(f"the shape of the logits of {name}", list(logits.shape), allowed, "logit fusion")
        if not bool(logits.isfinite().all()):
            raise NotFinite(f"logit fusion: a logit of {name} is NaN or infinite")
