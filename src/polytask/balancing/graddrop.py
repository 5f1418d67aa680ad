"""GradDrop: where tasks disagree on an element's sign, one sign is drawn, with the odds of its share of the magnitude.

Source      Chen et al. 2020, arXiv:2010.06808, Algorithm 1, with f the identity: the positive sign purity of an element
            is P = (1 + sum g / sum |g|) / 2; values of the sign that is not drawn are dropped.
Departures  one draw decides for or against the sign with the larger share (the paper: for or against the positive
            one), which has the same distribution and makes the rule odd: f(-X) = -f(X). The paper also applies it to
            gradients at a representation, times the sign of the activation; here to whatever vectors it is given.
            torchjd 0.18 draws the same signs with the same odds from another generator, so single steps differ.
Cost        O(T) a parameter element.
"""

from typing import Annotated

import torch
from jaxtyping import Float
from torch import Tensor

from polytask.core.constraints import Interval, PerTask
from polytask.core.noise import Noise
from polytask.core.rules import rule


@rule(
    "graddrop",
    source="arXiv:2010.06808, Algorithm 1",
    needs=("stack",),
    scale="sum",
    claims=("homogeneous",),
)
def graddrop(
    stack: Float[Tensor, "T *shape"],
    *,
    noise: Noise,
    leak: Annotated[Float[Tensor, "T"] | float, PerTask(Interval(0, 1))] = 0.0,
) -> Float[Tensor, "*shape"]:
    """The sum of the values whose sign was drawn, and of `leak` times the others.

    Args:    stack: the task vectors of one parameter.
             noise: of this step and parameter.
             leak: by task, the part of a value that is never dropped.
    Returns: the combined vector.
    """
    rows = stack.flatten(1) if stack.dim() > 1 else stack[:, None]
    rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
    total, magnitude = rows.sum(0), rows.abs().sum(0)
    share = (1 + total.abs() / torch.where(magnitude > 0, magnitude, 1.0)) / 2  # of the larger sign
    first = rows.gather(0, (rows != 0).int().argmax(0)[None])[0]  # where neither sign is larger: the first task's
    larger = torch.where(total == 0, first, total).sign()
    drawn = torch.from_numpy(noise.uniform(rows.shape[1])).to(rows)
    sign = torch.where(share >= drawn, larger, -larger)
    never = (torch.ones(len(rows), dtype=torch.float64) * leak).to(rows)[:, None]
    kept = torch.where(rows.sign() == sign, rows, never * rows).sum(0)
    return kept.to(stack.dtype).view(stack.shape[1:])
