"""SLERP: from the first model to the second along the great circle between them.

Source      Shoemake 1985, "Animating rotation with quaternion curves": weights sin((1 - t) a) / sin a and sin(t a) /
            sin a, a the angle between the two; as a merge of models, tensor by tensor, documented by mergekit.
Departures  the models are not of equal length: the weights are applied to them as they are, as merging tools do. Where
            sin a vanishes (parallel, opposite or zero vectors) the weights are 1 - t and t; so they are where the
            cosine exceeds `straight`, which other tools have at 0.9995: ordinary fine-tunes lie beyond it.
Cost        O(1) beside the Gram matrix.
"""

import math
from typing import Annotated

import torch
from jaxtyping import Float
from torch import Tensor

from polytask.core.constraints import Interval, PerTask
from polytask.core.rules import rule
from polytask.merging.sphere import TINY, share_of_way


@rule(
    "slerp",
    source="Shoemake 1985",
    needs=("gram",),
    scale="mean",
    claims=("homogeneous", "nonnegative_weights", "linear_under_scaling"),
    of="either",
    groups="tensor",
    tasks=2,
    trials=({"t": 0.2},),
)
def slerp(
    gram: Float[Tensor, "2 2"],
    *,
    t: Annotated[float, Interval(0, 1)] = 0.5,
    weights: Annotated[Float[Tensor, "2"] | float, PerTask(Interval(0))] = 1.0,
    straight: Annotated[float, Interval(-1, 1)] = 1.0,
) -> Float[Tensor, "2"]:
    """The weights of the point at `t` of the way.

    Args:    gram: inner products of the two models' weights.
             t: 0 is the first model, 1 the second.
             weights: of the two; with them the way is divided as (1 - t) and t times the weights say.
             straight: cosine beyond which the way is a straight line.
    Returns: two weights.
    """
    t = share_of_way(t, weights, "rule 'slerp'")
    lengths = gram.diagonal().clamp(min=0).sqrt()
    cosine = float(gram[0, 1] / (lengths[0] * lengths[1])) if bool(lengths.all()) else 1.0
    sine = math.sqrt(max(1 - cosine**2, 0.0))
    if sine <= TINY or cosine > straight:
        return torch.tensor([1 - t, t], dtype=gram.dtype)
    angle = math.atan2(sine, cosine)
    return torch.tensor([math.sin((1 - t) * angle), math.sin(t * angle)], dtype=gram.dtype) / sine
