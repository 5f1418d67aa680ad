"""DOGE: task vectors bent apart by a common correction outside their shared subspace, then summed at equal lengths.

Source      Wei et al. 2025, arXiv:2501.01230, adaptive projective gradient descent: a layer becomes
            sum_t l_t (X_t + D), with l_t = `coefficient` / |X_t|, each X_t + D cut to its largest `density`. The
            correction D, the same for all tasks, minimises the gap to each expert, which the paper measures without
            data by the inner product of the merged change minus X_t with X_t, squared and summed over rows and tasks;
            400 steps of Adam with learning rate 1e-4, each gradient projected off the shared subspace: the leading
            left singular vectors of all tasks' leading left singular vectors side by side.
Departures  the trimming is within each tensor (the authors': over the whole vector), ties by lowest index. The shared
            subspace takes a share `subspace` of the min(m, n) directions. A tensor with one axis counts as one row,
            which the subspace fills, so D is 0 there. The paper's text was not at hand: the objective and the
            defaults are as documented by others.
Cost        T + 1 decompositions a matrix (decompositions.thin_svd), 4 T m n and 4 m n r a step, r the subspace's
            dimension; six matrices beside the task vectors.
"""

import math
from collections.abc import Callable
from typing import Annotated

import torch
from jaxtyping import Float
from torch import Tensor

from polytask.core.constraints import Interval
from polytask.core.rules import rule
from polytask.merging.decompositions import thin_svd
from polytask.merging.descent import adam
from polytask.merging.selection import largest


@rule("doge", source="arXiv:2501.01230", needs=("stack",), granularity="tensor", scale="part", claims=("permutation",))
def doge(
    stack: Float[Tensor, "T *shape"],
    *,
    coefficient: Annotated[float, Interval(0, open="left")] = 0.07,
    density: Annotated[float, Interval(0, 1, open="left")] = 0.3,
    subspace: Annotated[float, Interval(0, 1)] = 1 / 6,
    steps: Annotated[int, Interval(0)] = 400,
    learning_rate: Annotated[float, Interval(0, open="left")] = 1e-4,
) -> Float[Tensor, "*shape"]:
    """The combination of corrected task vectors.

    Args:    stack: the task vectors of one parameter.
             coefficient: the length of each task's contribution before trimming; the paper's eta.
             density: share of the elements that each corrected task vector keeps.
             subspace: share of the directions in which the correction may not move.
             steps, learning_rate: of the descent.
    Returns: the combined vector.
    """
    X = stack.flatten(2) if stack.dim() > 2 else stack.reshape(len(stack), 1, -1)
    X = X.to(torch.promote_types(stack.dtype, torch.float32))
    norms = torch.stack([torch.linalg.vector_norm(x, dtype=torch.float64) for x in X])
    scales = torch.where(norms > 0, coefficient / norms, 0.0).to(X.dtype)
    shared = _shared_subspace(X, subspace)
    correction = torch.zeros_like(X[0])
    if shared.shape[1] < len(shared):  # else there is no direction left to move in
        correction = adam(correction, _gradient(X, scales, shared), steps, learning_rate)
    merged = torch.zeros_like(correction).flatten()
    for x, scale in zip(X, scales.tolist(), strict=True):
        merged.add_(largest((x + correction).flatten(), density), alpha=scale)
    return merged.to(stack.dtype).view(stack.shape[1:])


def _gradient(
    X: Float[Tensor, "T m n"], scales: Float[Tensor, "T"], shared: Float[Tensor, "m k"]
) -> Callable[[Tensor], Tensor]:
    """The objective's slope at a correction D.

    The gap to task t, sum_s l_s (X_s + D) - X_t, has the inner products g_t + (sum l) <D, X_t> with X_t, row by row,
    and the slope is 2 (sum l) sum_t of these times X_t: nothing of T matrices' size is made.
    """
    total, tasks = scales.sum(), range(len(X))
    merged = torch.einsum("t,tmn->mn", scales, X)
    fixed = torch.stack([_row_products(merged - X[t], X[t]) for t in tasks])

    def slope(correction: Tensor) -> Tensor:
        found = torch.zeros_like(correction)
        for t in tasks:
            gap = fixed[t] + total * _row_products(correction, X[t])
            found.addcmul_(X[t], (2 * total * gap)[:, None])
        return found.sub_(shared @ (shared.T @ found))

    return slope


def _row_products(a: Float[Tensor, "m n"], b: Float[Tensor, "m n"]) -> Float[Tensor, "m"]:
    return torch.linalg.vecdot(a, b)


def _shared_subspace(X: Float[Tensor, "T m n"], share: float) -> Float[Tensor, "m k"]:
    """Orthonormal columns: the leading left singular vectors of the tasks' leading left singular vectors."""
    rank = min(X.shape[1:])
    each = max(1, rank // len(X))
    columns = torch.zeros(X.shape[1], each * len(X), dtype=torch.float64)  # one of zeros is no direction
    for place, x in enumerate(X):
        own = thin_svd(x, each)[0]
        columns[:, place * each : place * each + own.shape[1]] = own
    return thin_svd(columns, math.ceil(share * rank))[0].to(X.dtype)
