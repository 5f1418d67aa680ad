"""Drop and rescale: each element is kept with probability `density` and divided by it, or set to 0.

Source      Yu et al. 2023, arXiv:2311.03099, "DARE": delta parameters are dropped at random with rate p, the others
            divided by 1 - p, which keeps every element's expectation.
Departures  probabilities are multiples of 2^-32. The paper tries p from 0.1 to 0.9 and beyond; the default here is 0.5.
Cost        one draw of 16 bits an element, and of 16 more for one in 65,536.
"""

from typing import Annotated

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from polytask.core.constraints import Choice, Interval, PerTask
from polytask.core.noise import Noise
from polytask.merging.contract import transform


@transform("drop", source="arXiv:2311.03099")
def drop(
    stack: Float[Tensor, "T n"],
    *,
    noise: tuple[Noise, ...],
    density: Annotated[Float[Tensor, "T"] | float, PerTask(Interval(0, 1, open="left"))] = 0.5,
    rescale: Annotated[str, Choice("density", "none")] = "density",
) -> Float[Tensor, "T n"]:
    """The kept elements.

    Args:    stack: a block of the task vectors; overwritten.
             noise: of each task.
             density: by task, the probability of being kept.
             rescale: divide what is kept by the density, or leave it.
    Returns: the same block.
    """
    densities = (torch.ones(len(stack), dtype=torch.float64) * density).tolist()
    for row, source, kept in zip(stack, noise, densities, strict=True):
        if kept < 1:
            values = row.numpy()
            np.multiply(values, source.below(len(row), round(kept * 2**32)), out=values)
        if rescale == "density":
            row.div_(kept)
    return stack
