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


def nearest_orthonormal(columns: Float[Tensor, "m k"]) -> Float[Tensor, "m k"]:
    """X (X^T X)^(-1/2): the orthonormal columns nearest to X; of dependent ones as many directions as they span."""
    values, vectors = torch.linalg.eigh(columns.T @ columns)
    kept = values > NEGLIGIBLE**2 * values[-1:]
    basis = vectors[:, kept]
    return columns @ (basis / values[kept].sqrt()) @ basis.T


def pseudo_inverse(symmetric: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
    """Of a symmetric matrix with no negative eigenvalue, a Gram matrix; those below 1e-12 of the largest count as 0."""
    values, vectors = torch.linalg.eigh(symmetric)
    kept = values > NEGLIGIBLE**2 * values[-1:]
    basis = vectors[:, kept]
    return (basis / values[kept]) @ basis.T
