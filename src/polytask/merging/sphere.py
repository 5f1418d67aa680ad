"""Means on the sphere of directions, as weights of the vectors: all they need is the vectors' Gram matrix.

A vector x_t is |x_t| u_t. The unit vectors u_t are given coordinates in the space that they span, where the sphere is
an ordinary one; a point found there is a weighted sum of the vectors again. A zero vector has no direction: its row of
coordinates is 0, and so is its weight.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from polytask.core.errors import BadValue
from polytask.core.geometry import unit_gram

TINY = 1e-5  # a length or sine that the rounding of the Gram matrix may have made; its square is what rounds
_DEPENDENT = 1e-12  # of the largest eigenvalue; see geometry.pseudo_solve


def share_of_way(t: float, weights: Float[Tensor, "2"] | float, where: str) -> float:
    """How far along the way from the first of two models to the second; BadValue where both weights count nothing."""
    first, second = (torch.tensor([1 - t, t], dtype=torch.float64) * weights).tolist()
    if first + second == 0:
        raise BadValue("the sum of (1 - t) and t times the weights", 0.0, "more than 0", where)
    return second / (first + second)


class Sphere:
    """The directions of the vectors of a Gram matrix.

    Attributes:
        units: coordinates of the unit vectors, [T, k].
        lengths: of the vectors.
    """

    def __init__(self, gram: Float[Tensor, "T T"]) -> None:
        correlation, lengths = unit_gram(gram.numpy())
        C = torch.from_numpy(correlation)
        values, vectors = torch.linalg.eigh(C)
        kept = values > _DEPENDENT * values[-1]
        self._basis = vectors[:, kept] / values[kept].sqrt()
        self.units = vectors[:, kept] * values[kept].sqrt()
        self.lengths = torch.from_numpy(lengths) * C.diagonal()  # 0 for a zero vector

    @property
    def known(self) -> Float[Tensor, "T"]:
        """1 for a vector that has a direction, 0 for a zero vector."""
        return (self.lengths > 0).to(self.lengths)

    def mean_direction(self, weights: Float[Tensor, "T"]) -> Float[Tensor, "k"] | None:
        """The weighted sum of the unit vectors, brought to unit length; None where it vanishes."""
        total = weights @ self.units
        return total / total.norm() if total.norm() > TINY * weights.abs().sum() else None

    def logarithms(self, at: Float[Tensor, "k"]) -> Float[Tensor, "T k"]:
        """Row t: the tangent vector at the unit point `at` that leads to u_t; its length is the angle between them.

        To the point itself and to its antipode, where no way is the shortest: 0.
        """
        cosine = self.units @ at
        apart = self.units - cosine[:, None] * at
        sine = apart.norm(dim=1)
        some = sine > 1e-15
        return torch.where(some, torch.atan2(sine, cosine) / torch.where(some, sine, 1.0), 0.0)[:, None] * apart

    def moved(self, at: Float[Tensor, "k"], tangent: Float[Tensor, "k"]) -> Float[Tensor, "k"]:
        """The unit point reached from the unit point `at` along a tangent vector (the exponential)."""
        angle = tangent.norm()
        reached = angle.cos() * at + torch.sinc(angle / torch.pi) * tangent
        return reached / reached.norm()

    def weights(self, point: Float[Tensor, "k"], length: Tensor) -> Float[Tensor, "T"]:
        """The weights of the vectors that give the point times `length`; of several the shortest, per unit vector."""
        per_unit = self._basis @ point * self.known
        return length * per_unit / torch.where(self.lengths > 0, self.lengths, 1.0)
