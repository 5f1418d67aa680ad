"""MetaBalance: auxiliary tasks' gradients are brought nearer to the length of the target task's.

Source      He, Feng, Cheng, Ji, Guo and Caverlee 2022, "MetaBalance: improving multi-task recommendations via adapting
            gradient magnitudes of auxiliary tasks", arXiv:2203.06801, the strategy that both shrinks and enlarges: with
            m moving averages of the lengths, an auxiliary gradient is multiplied by relax m_target / m + (1 - relax).
Departures  none under `groups: tensor`, a length for each parameter as in the paper; the default of all rules is one
            length over all shared parameters. An average that is 0 (the authors' code adds 1e-5 to it) gives its task
            the factor 1 - relax. Where the target task is absent every gradient keeps its length.
Cost        T backward passes; O(T) besides.
"""

from typing import Annotated, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from polytask.core.constraints import Interval, TaskName
from polytask.core.rules import rule
from polytask.core.state import zeros


class MetaBalanceState(NamedTuple):
    """Moving averages of the lengths, 0 at the start."""

    length: Float[Tensor, "T"]


@rule(
    "metabalance",
    source="arXiv:2203.06801",
    needs=("gram",),
    scale="own",
    claims=("homogeneous", "nonnegative_weights", "linear_under_scaling"),
    init=zeros(MetaBalanceState),
    trials=({"relax": 1.0},),
)
def metabalance(
    gram: Float[Tensor, "T T"],
    state: MetaBalanceState,
    *,
    target: Annotated[Float[Tensor, "T"] | str | None, TaskName()] = None,
    relax: Annotated[float, Interval(0, 1)] = 0.7,
    beta: Annotated[float, Interval(0, 1, open="right")] = 0.9,
) -> tuple[Float[Tensor, "T"], MetaBalanceState]:
    """The factors of the gradients; the target's is 1.

    Args:    gram: inner products of the task vectors (units of g squared); only its diagonal is read.
             target: the task whose gradients' length the others' move towards.
             relax: how near they come: 0 leaves them, 1 gives them the target's length.
             beta: how much of a moving average stays in each step.
    Returns: weights, dimensionless, and the state with this step's lengths in it.
    """
    lengths = beta * state.length + (1 - beta) * gram.diagonal().clamp(min=0).sqrt()
    assert isinstance(target, Tensor)
    if float(target.sum()) == 0:
        return torch.ones_like(lengths), MetaBalanceState(lengths)
    wanted = lengths @ target / torch.where(lengths > 0, lengths, 1.0)
    weights = torch.where(lengths > 0, relax * wanted, 0.0) + (1 - relax)
    return torch.where(target > 0, 1.0, weights), MetaBalanceState(lengths)
