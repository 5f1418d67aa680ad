"""CoBa: weights from the slopes of the validation losses, so that tasks converge together and none begins to diverge.

Source      Gong et al. 2024, arXiv:2410.06741: slopes a_t of the least-squares line through a task's last validation
            losses, each divided by its first one; relative scores softmax(T a_t / sum_u |a_u|) for tasks that converge
            at another pace than the others, absolute ones softmax(-N a_t / sum_n |a_t(n)|) over a task's last N slopes
            for tasks whose own loss rises, and between them a divergence factor: the number of slopes so far times
            the last entry of softmax(-tau n m / sum |m|) over the largest slope m of each step, at most 1.
Departures  the divergence factor looks at the last `history` steps. Until a task has shown two validation losses, and
            in the first `warmup` steps, the weights are equal. The defaults are those of the authors' programme, which
            goes on from there: it takes the softmax of T times these weights, keeps each above 1 / (10 T), and fits the
            line of the divergence factor to the largest loss of each step. The paper's text was at hand in parts only.
Cost        O(T) and `history` numbers a task; one backward pass, and one forward pass on the validation batch.
"""

from typing import Annotated, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from polytask.core.constraints import Interval
from polytask.core.rules import require_at_least, rule


class CobaState(NamedTuple):
    """First validation loss; the last relative losses and slopes, the newest at the end (NaN: none yet); the largest
    slopes of the last steps; steps so far."""

    first: Float[Tensor, "T"]
    relative: Float[Tensor, "T n"]
    slopes: Float[Tensor, "T n"]
    largest: Float[Tensor, "n"]
    steps: Float[Tensor, ""]


def start(tasks: int, *, history: int) -> CobaState:
    unknown = torch.full((tasks, history), torch.nan, dtype=torch.float64)
    return CobaState(unknown[:, 0], unknown, unknown, unknown.new_full((history,), torch.nan), unknown.new_zeros(()))


@rule(
    "coba",
    source="arXiv:2410.06741",
    needs=("losses", "validation"),
    scale="mean",
    claims=("permutation", "homogeneous", "nonnegative_weights", "convex_weights", "linear_under_scaling"),
    init=start,
    trials=({"warmup": 0, "history": 4},),
)
def coba(
    losses: Float[Tensor, "T"],
    validation: Float[Tensor, "T"],
    state: CobaState,
    *,
    history: Annotated[int, Interval(2)] = 200,
    warmup: Annotated[int, Interval(0)] = 100,
    tau: Annotated[float, Interval(0, open="left")] = 5.0,
) -> tuple[Float[Tensor, "T"], CobaState]:
    """The divergence factor times the relative scores, plus the rest times the absolute ones.

    Args:    losses: how many tasks there are; their values do not matter.
             validation: the tasks' validation losses, at least 0, any units; NaN where the batch has no label.
             history: how many losses a slope is fitted to, and how many slopes are remembered.
             warmup: steps with equal weights.
             tau: how sharply the divergence factor reacts.
    Returns: convex weights, dimensionless, and the state with this step's validation losses in it.
    """
    require_at_least(validation, 0.0, "its ratio to the first one is followed")
    state = _followed(state, validation, history)
    slopes = state.slopes[:, -1]
    if int(state.steps) <= warmup or bool(slopes.isnan().any()):
        return torch.full_like(losses, 1 / len(losses)), state
    relative = torch.softmax(len(slopes) * _share(slopes, slopes.abs().sum()), dim=0)
    known = (~state.slopes.isnan()).sum(1)
    absolute = torch.softmax(-known * _share(slopes, state.slopes.abs().nansum(1)), dim=0)
    largest = state.largest[~state.largest.isnan()]
    over_steps = torch.softmax(-tau * len(largest) * _share(largest, largest.abs().sum()), dim=0)
    factor = (len(largest) * over_steps[-1]).clamp(max=1.0)
    return factor * relative + (1 - factor) * absolute, state


def _followed(state: CobaState, validation: Float[Tensor, "T"], history: int) -> CobaState:
    """With a step's validation losses, and the slopes that they give, at the end."""
    known = ~validation.isnan()
    first = torch.where(
        known & state.first.isnan(), validation.clamp(min=torch.finfo(validation.dtype).tiny), state.first
    )
    relative = torch.where(known[:, None], _pushed(state.relative, validation / first), state.relative)
    slopes = torch.where(known[:, None], _pushed(state.slopes, _slopes(relative)), state.slopes)
    newest = slopes[:, -1]
    largest = state.largest if bool(newest.isnan().any()) else _pushed(state.largest, newest.max())
    return CobaState(first, relative, slopes, largest, state.steps + 1)


def _pushed(rows: Tensor, newest: Tensor) -> Tensor:
    """Rows without their oldest entry, and with a new one at the end."""
    return torch.cat([rows[..., 1:], newest[..., None]], dim=-1)


def _slopes(relative: Float[Tensor, "T n"]) -> Float[Tensor, "T"]:
    """Of the least-squares line through each row's known entries; NaN with fewer than two."""
    known = ~relative.isnan()
    count = known.sum(1, keepdim=True)
    steps = torch.arange(relative.shape[1], dtype=relative.dtype).expand_as(relative)
    x = torch.where(known, steps - (steps * known).sum(1, keepdim=True) / count, 0.0)
    return (x * relative.nan_to_num()).sum(1) / x.square().sum(1).masked_fill(count[:, 0] < 2, torch.nan)


def _share(values: Tensor, total: Tensor) -> Tensor:
    """Values over a total; 0 where that is 0."""
    return torch.where(total > 0, values / total, 0.0)
