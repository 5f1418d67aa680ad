"""Adam on one tensor, for merges that are defined by a few hundred of its steps."""

from collections.abc import Callable

import torch
from torch import Tensor


def adam(
    start: Tensor, gradient: Callable[[Tensor], Tensor], steps: int, learning_rate: float, epsilon: float = 1e-8
) -> Tensor:
    """The tensor after `steps` steps of Adam (Kingma and Ba 2015, arXiv:1412.6980; b1 .9, b2 .999).

    What `gradient` gives is overwritten.
    """
    value = start.clone()
    first, second = value.new_zeros(value.shape), value.new_zeros(value.shape)
    for step in range(1, steps + 1):
        slope = gradient(value)
        first.lerp_(slope, 0.1)
        second.lerp_(slope.square_(), 0.001)
        size = torch.div(second, 1 - 0.999**step, out=slope).sqrt_().add_(epsilon)
        value.sub_(torch.div(first, size, out=size), alpha=learning_rate / (1 - 0.9**step))
    return value
