"""Singular value decompositions for matrix rules: on the smaller side, in float64, without the directions of rounding.

A task vector is often of low rank (an adapter's is by construction, an untouched matrix is zero), and the singular
vectors of vanishing singular values are arbitrary: a rule that used them would give another result on another machine.
They are left out.
"""

import torch
from jaxtyping import Float
from torch import Tensor

NEGLIGIBLE = 1e-6  # of the largest singular value; float32 deltas are rounded at about 1e-7 of it


def thin_svd(
    matrix: Float[Tensor, "m n"], most: int | None = None, least: float = 0.0
) -> tuple[Float[Tensor, "m k"], Float[Tensor, "k"], Float[Tensor, "k n"]]:
    """(U, S, Vh), float64, with U S Vh = matrix: the singular values above 1e-6 of the largest and above `least`.

    At most the `most` largest of them.
    From the eigenvectors of the smaller Gram matrix: about twice as fast as a bidiagonalisation, and a singular value
    at 1e-3 of the largest still has eight digits. Of -matrix: the same but for the sign of U or of Vh.

    Cost: 2 m n min(m, n) for the Gram matrix and the other side's vectors each, 9 min(m, n)^3 for the eigenvectors;
    16 bytes an element of the matrix.
    """
    if len(matrix) > matrix.shape[1]:
        V, S, Uh = thin_svd(matrix.T, most, least)
        return Uh.T, S, V.T
    A = matrix.double()
    values, vectors = torch.linalg.eigh(A @ A.T)
    values, vectors = values.flip(0), vectors.flip(1)
    kept = int((values > (NEGLIGIBLE**2 * values[:1]).clamp(min=least**2)).sum())
    kept = kept if most is None else min(kept, most)
    S, U = values[:kept].sqrt(), vectors[:, :kept]
    return U, S, (U.T @ A) / S[:, None]


def polar(stack: Float[Tensor, "T m n"]) -> tuple[Float[Tensor, "m n"], Float[Tensor, "k"]]:
    """(U Vh, S) of `thin_svd` of the sum of some matrices, the first in their type, the second in float64.

    Cost: 2 m n min(m, n) for the Gram matrix and the result each, as U is not formed, and 9 min(m, n)^3 for the
    eigenvectors, all in float64; no memory beyond the result and a few rows.
    """
    if stack.shape[1] < stack.shape[2]:
        found, S = polar(stack.mT)
        return found.T, S
    gram = torch.zeros(stack.shape[2], stack.shape[2], dtype=torch.float64)
    for part in stack.split(_ROWS, dim=1):
        rows = part.sum(0, dtype=torch.float64)
        gram.addmm_(rows.T, rows)
    values, vectors = torch.linalg.eigh(gram)
    kept = values > NEGLIGIBLE**2 * values[-1:]
    S, basis = values[kept].sqrt(), vectors[:, kept]
    turn, found = (basis / S) @ basis.T, torch.empty_like(stack[0])
    for part, result in zip(stack.split(_ROWS, dim=1), found.split(_ROWS), strict=True):
        result.copy_(part.sum(0, dtype=torch.float64) @ turn)
    return found, S


_ROWS = 4096  # that are in float64 at a time


def nearest_orthonormal(columns: Float[Tensor, "m k"]) -> Float[Tensor, "m k"]:
    """X (X^T X)^(-1/2): the orthonormal columns nearest to X; of dependent ones as many directions as they span."""
    return polar(columns[None])[0]


def pseudo_inverse(symmetric: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
    """Of a symmetric matrix with no negative eigenvalue, a Gram matrix; those below 1e-12 of the largest count as 0."""
    values, vectors = torch.linalg.eigh(symmetric)
    kept = values > NEGLIGIBLE**2 * values[-1:]
    basis = vectors[:, kept]
    return (basis / values[kept]) @ basis.T
