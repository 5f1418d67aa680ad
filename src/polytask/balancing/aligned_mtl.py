"""Aligned-MTL: the weighted mean of the task gradients after their principal components are made equally long.

Source      Senushkin, Patakin, Kuznetsov and Konushin 2023, "Independent component alignment for multi-task learning",
            arXiv:2305.19000, Algorithm 1: weights s V S^-1 V^T w with G = V S^2 V^T and s the smallest non-zero entry
            of S.
Departures  none in exact arithmetic. The rank is that of the unit gradients' Gram matrix (singular values below 1e-6
            of it count as 0), so a gradient that is merely short counts; where lengths differ by more than a factor of
            100, S comes from a factor of G, which keeps its small entries. w is `priority` / T.
Cost        one eigendecomposition of size T, or one and a singular value decomposition.
"""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from polytask.core.geometry import unit_gram
from polytask.core.rules import rule


@rule(
    "aligned_mtl",
    source="arXiv:2305.19000, Algorithm 1",
    needs=("gram",),
    scale="mean",
    claims=("permutation", "homogeneous"),
)
def aligned_mtl(gram: Float[Tensor, "T T"], *, priority: Float[Tensor, "T"]) -> Float[Tensor, "T"]:
    """Weights of the mean of the aligned gradients.

    Args:    gram: inner products of the task vectors (units of g squared).
             priority: preference for each task, mean 1.
    Returns: dimensionless weights, some of which may be negative; the update is at most as long as the shortest
             principal component.
    """
    unit, norms = unit_gram(gram.numpy())
    if not unit.any():
        return priority / len(gram)
    singular, vectors = _components(unit, norms / norms.max(where=unit.diagonal() > 0, initial=0.0))
    aligned = (vectors.T * (singular.min() / singular)) @ (vectors @ (priority.numpy() / len(unit)))
    return torch.from_numpy(aligned)


def _components(unit: np.ndarray, norms: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(non-zero singular values [R], their right singular vectors [R, T]) of the gradients with these norms."""
    values, vectors = np.linalg.eigh(unit * norms[:, None] * norms)
    if values[0] > 1e-6 * values[-1]:  # known to 10 digits, and of full rank
        return np.sqrt(values), vectors.T
    values, vectors = np.linalg.eigh(unit)
    kept = values > 1e-12 * values[-1]
    factor = np.sqrt(values[kept])[:, None] * vectors[:, kept].T * norms
    _, singular, right = np.linalg.svd(factor, full_matrices=False)
    return singular, right
