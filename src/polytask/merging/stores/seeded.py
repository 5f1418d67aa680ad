"""Seeded: of each matrix of a task vector a few numbers; the matrices that they multiply are made from the seed.

Source      Koohpayegani et al. 2024 (NOLA), arXiv:2310.02556: the change of a matrix is A B with A = sum_i a_i A_i and
            B = sum_j b_j B_j, the A_i and B_j random and frozen; the numbers a_i and b_j and the seed are what is kept.
Departures  the paper trains the numbers by the task's loss; here they are fitted to the task vector, by least squares
            in turns for a and b, from what the random matrices hold of its leading singular vectors. A change that was
            trained freely is hardly in the span of a few random matrices, which the printed error says. The random
            matrices are standard normal (the paper was read in its abstract and in reports). As many A_i as B_j.
            Tensors with fewer than two axes, and those that this would not make smaller, are kept as the task has them.
Cost        `thin_svd` for each matrix and task, and in each of 10 turns 2 bases^2 rank max(m, n); 8 bases rank (m + n)
            bytes. In the store: 8 bases bytes a matrix.
"""

from collections.abc import Mapping
from typing import Annotated, Any

import torch
from jaxtyping import Float
from torch import Tensor

from polytask.core.constraints import Interval
from polytask.core.noise import Noise
from polytask.merging.decompositions import pseudo_inverse, thin_svd
from polytask.merging.stores.contract import WHOLE, Packed, Parts, Vectors

_TURNS = 10


class Seeded:
    """See above."""

    def __init__(
        self,
        vectors: Vectors,
        *,
        bases: Annotated[int, Interval(1)] = 256,
        rank: Annotated[int, Interval(1)] = 4,
        seed: Annotated[int, Interval(0)] = 0,
    ) -> None:
        self._vectors, self._bases, self._rank, self._seed = vectors, bases, rank, seed
        self._fitted = 0

    def packed(self, name: str) -> Packed:
        shape, elements = self._vectors.shape(name), self._vectors.elements(name)
        if len(shape) < 2 or 2 * self._bases >= elements:
            return self._vectors.whole(name)
        self._fitted += elements
        m, n = shape[0], elements // shape[0]
        left = random_matrices(self._seed, name, "left", self._bases, m, self._rank)
        right = random_matrices(self._seed, name, "right", self._bases, n, self._rank)
        parts = []
        for matrix in self._vectors.stack(name).flatten(2):
            a, b = fitted(matrix.double(), left, right)
            parts.append({"left": a.float(), "right": b.float()})
        return Packed(parts)

    def about(self) -> list[dict[str, Any]]:
        return [{"fitted": self._vectors.share(self._fitted)} for _ in self._vectors.tasks]

    @staticmethod
    def restored(name: str, below: Tensor, parts: Parts, merged: Tensor | None, about: Mapping[str, Any]) -> Tensor:
        if WHOLE in parts:
            return parts[WHOLE]
        sides = (("left", below.shape[0]), ("right", below[0].numel()))
        A, B = (
            combined(
                random_matrices(about["seed"], name, side, len(parts[side]), rows, about["rank"]), parts[side].double()
            )
            for side, rows in sides
        )
        return (below.double() + (A @ B.T).view(below.shape)).to(below.dtype)


def random_matrices(
    seed: int, name: str, side: str, bases: int, rows: int, rank: int
) -> Float[Tensor, "bases rows rank"]:
    """The frozen matrices of one side of one tensor."""
    noise = Noise(seed, "store", "seeded", name, side)
    return torch.from_numpy(noise.normal(bases * rows * rank)).view(bases, rows, rank)


def combined(matrices: Float[Tensor, "bases rows rank"], numbers: Float[Tensor, "bases"]) -> Float[Tensor, "rows rank"]:
    """sum_i numbers_i matrices_i."""
    return torch.einsum("k,kmr->mr", numbers, matrices)


def fitted(
    matrix: Float[Tensor, "m n"], left: Float[Tensor, "k m rank"], right: Float[Tensor, "k n rank"]
) -> tuple[Float[Tensor, "k"], Float[Tensor, "k"]]:
    """The numbers a and b of A = sum_i a_i left_i and B = sum_j b_j right_j that make A B^T like the matrix.

    Never worse than no change at all: of a matrix that the random ones do not hold the numbers are 0.
    """
    rank = left.shape[2]
    _, S, Vh = thin_svd(matrix, rank)
    B = torch.zeros(matrix.shape[1], rank, dtype=torch.float64)
    B[:, : len(S)] = Vh.T * S.sqrt()
    b = _projected(right, B)
    a = torch.zeros(len(left), dtype=torch.float64)
    for _ in range(_TURNS):
        a = _solved(left, combined(right, b), matrix)
        b = _solved(right, combined(left, a), matrix.T)
    return a, b


def _projected(matrices: Tensor, wanted: Tensor) -> Tensor:
    """The numbers of the combination nearest to `wanted`."""
    rows = matrices.flatten(1)
    return pseudo_inverse(rows @ rows.T) @ (rows @ wanted.flatten())


def _solved(matrices: Tensor, other: Tensor, target: Tensor) -> Tensor:
    """The numbers a for which (sum_i a_i matrices_i) other^T is nearest to the target.

    With M = other^T other: sum_j <A_i M, A_j> a_j = <A_i, target other>.
    """
    weighed = (matrices @ (other.T @ other)).flatten(1)
    rows = matrices.flatten(1)
    return pseudo_inverse(weighed @ rows.T) @ (rows @ (target @ other).flatten())
