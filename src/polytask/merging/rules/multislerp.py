"""Multi-SLERP: the models' directions averaged in the tangent space at their mean direction, at their mean length.

Source      documented by mergekit (Goddard): directions are projected to the tangent space at their weighted mean,
            averaged there and projected back; the length is the weighted mean of the lengths.
Departures  `project` is the logarithm, one step of karcher; with "orthogonal" the tangent vectors are the directions
            less their part along the mean, whose weighted mean is zero, so the result is the mean's direction. Where
            that mean vanishes the weights are those of the weighted mean. A zero vector counts in the length alone.
Cost        O(T^3) beside the Gram matrix.
"""

from typing import Annotated

import torch
from jaxtyping import Float
from torch import Tensor

from polytask.core.constraints import Choice, Interval, PerTask
from polytask.core.errors import BadValue
from polytask.core.rules import rule
from polytask.merging.sphere import Sphere


@rule(
    "multislerp",
    source="mergekit's documentation",
    needs=("gram",),
    scale="mean",
    claims=("permutation", "homogeneous", "linear_under_scaling"),
    of="either",
    groups="tensor",
    trials=({"project": "orthogonal"},),
)
def multislerp(
    gram: Float[Tensor, "T T"],
    *,
    weights: Annotated[Float[Tensor, "T"] | float, PerTask(Interval())] = 1.0,
    normalize: bool = True,
    project: Annotated[str, Choice("logarithm", "orthogonal")] = "logarithm",
) -> Float[Tensor, "T"]:
    """The weights of the spherical average.

    Args:    gram: inner products of the models' weights, or of their task vectors.
             weights: of each; only their ratios count with `normalize`.
             project: how a direction becomes a tangent vector.
    Returns: the weights.
    """
    parts = torch.ones(len(gram), dtype=gram.dtype) * weights
    if normalize:
        parts = normalized(parts, "rule 'multislerp'")
    sphere = Sphere(gram)
    point = sphere.mean_direction(parts)
    if point is None:
        return parts
    if project == "logarithm":
        point = sphere.moved(point, parts @ sphere.logarithms(point))
    return sphere.weights(point, parts @ sphere.lengths)


def normalized(weights: Float[Tensor, "T"], where: str) -> Float[Tensor, "T"]:
    """The weights divided by their sum; BadValue if it is 0."""
    total = weights.sum()
    if total == 0:
        raise BadValue(
            "the sum of the weights", 0.0, "a sum that one can divide by; normalize: false keeps them", where
        )
    return weights / total
