"""Karcher mean: the direction with the least sum of squared angles to the models', at the models' mean length.

Source      Grove and Karcher 1973, the Riemannian centre of mass, here on the sphere of directions, found by stepping
            along the mean of the logarithms; as a merge of models documented by mergekit.
Departures  it lies in the span of the models, so the iteration runs on their Gram matrix, to the end by default. Where
            the mean of the directions vanishes (two opposite models) no centre is singled out: the weights are those
            of the plain mean. A zero vector has no direction and counts in the mean length alone.
Cost        O(T^3) an iteration beside the Gram matrix.
"""

from typing import Annotated

import torch
from jaxtyping import Float
from torch import Tensor

from polytask.core.constraints import Interval
from polytask.core.rules import rule
from polytask.merging.sphere import Sphere


@rule(
    "karcher",
    source="Grove and Karcher 1973",
    needs=("gram",),
    scale="mean",
    claims=("permutation", "homogeneous", "linear_under_scaling"),
    of="models",
    groups="tensor",
)
def karcher(
    gram: Float[Tensor, "T T"],
    *,
    iterations: Annotated[int, Interval(0)] = 100,
    tolerance: Annotated[float, Interval(0)] = 1e-12,
) -> Float[Tensor, "T"]:
    """The weights of the centre of mass.

    Args:    gram: inner products of the models' weights.
             iterations: at most so many steps from the direction of the mean.
             tolerance: angle of a step that ends them.
    Returns: the weights.
    """
    sphere = Sphere(gram)
    point = sphere.mean_direction(torch.ones(len(gram), dtype=gram.dtype))
    if point is None:
        return torch.full((len(gram),), 1 / len(gram), dtype=gram.dtype)
    share = sphere.known / sphere.known.sum()
    for _ in range(iterations):
        step = share @ sphere.logarithms(point)
        point = sphere.moved(point, step)
        if step.norm() <= tolerance:
            break
    return sphere.weights(point, sphere.lengths.mean())
