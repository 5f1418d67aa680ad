"""Iso-CTS: the leading directions of the sum, then each task's own directions outside them, all equally long.

Source      Marczak et al. 2025, arXiv:2502.04959, isotropic merging in common and task-specific subspaces: of r =
            min(m, n) directions a fraction `common` comes from the sum of the task matrices; the rest is shared out
            among the tasks, each giving the leading singular directions of its matrix without the part in the common
            left subspace. Both sides' vectors are made orthonormal (the nearest such set), and every direction gets
            the mean of the collected singular values.
Departures  vanishing singular values are left out, as in iso_c, and so are directions that the collected ones already
            span. Tensors that are not matrices take the tasks' mean. The paper's text was not at hand.
Cost        T + 1 decompositions a matrix and two of collected directions (decompositions.thin_svd).
"""

from typing import Annotated

import torch
from jaxtyping import Float
from torch import Tensor

from polytask.core.constraints import Interval
from polytask.core.rules import rule
from polytask.merging.decompositions import NEGLIGIBLE, nearest_orthonormal, thin_svd


@rule(
    "iso_cts",
    source="arXiv:2502.04959",
    needs=("matrix",),
    scale="own",
    claims=("permutation", "homogeneous"),
    otherwise="linear",
)
def iso_cts(matrix: Float[Tensor, "T m n"], *, common: Annotated[float, Interval(0, 1)] = 0.8) -> Float[Tensor, "m n"]:
    """The isotropic combination of common and task-specific directions.

    Args:    matrix: the tasks' deltas of one matrix.
             common: share of the min(m, n) directions that the sum gives.
    Returns: a matrix with equal singular values.
    """
    rank = min(matrix.shape[1:])
    each = int((1 - common) * rank / len(matrix) + 1e-9)
    U, S, Vh = thin_svd(matrix.sum(0, dtype=torch.float64), rank - each * len(matrix))
    parts = [(U, S, Vh)]
    for delta in matrix.double():
        parts.append(thin_svd(delta - U @ (U.T @ delta), each, NEGLIGIBLE * float(delta.norm())))
    S = torch.cat([part[1] for part in parts])
    U = nearest_orthonormal(torch.cat([part[0] for part in parts], dim=1))
    V = nearest_orthonormal(torch.cat([part[2] for part in parts]).T)
    return (S.sum() / max(len(S), 1) * (U @ V.T)).to(matrix.dtype)
