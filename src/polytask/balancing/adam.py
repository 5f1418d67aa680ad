"""Adam's step as a pure function, for rules that learn a number a task."""

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from polytask.core.state import zeros


class AdamState(NamedTuple):
    """Moments of the gradient and the number of steps, each by task, so that an absent task's wait with it."""

    first_moment: Float[Tensor, "T"]
    second_moment: Float[Tensor, "T"]
    steps: Float[Tensor, "T"]


adam_start = zeros(AdamState)


def adam_step(
    gradient: Float[Tensor, "T"],
    state: AdamState,
    learning_rate: float,
    betas: tuple[float, float] = (0.9, 0.999),
    epsilon: float = 1e-8,
) -> tuple[Float[Tensor, "T"], AdamState]:
    """The change of the learned values and the next state.

    Source      Kingma and Ba 2015, arXiv:1412.6980, Algorithm 1.
    Departures  none.
    """
    steps = state.steps + 1
    first = betas[0] * state.first_moment + (1 - betas[0]) * gradient
    second = betas[1] * state.second_moment + (1 - betas[1]) * gradient.square()
    corrected = first / (1 - betas[0] ** steps)
    spread = (second / (1 - betas[1] ** steps)).sqrt() + epsilon
    return -learning_rate * corrected / spread, AdamState(first, second, steps)
