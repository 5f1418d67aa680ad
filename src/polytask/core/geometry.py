"""The geometry of task vectors: inner products, angles, signs, and the two projections that rules are made of.

Everything here works on a Gram matrix G (G[i, j] is the inner product of tasks i and j) or on one parameter's stack
[T, *shape], so it serves gradients and fine-tuning deltas alike. G and the solvers are float64 on the CPU.
"""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

_BLOCK = 1 << 16  # columns whose products are summed in the stack's own precision before float64 takes over


def gram(stack: Float[Tensor, "T ..."], *, double: bool = False) -> Float[Tensor, "T T"]:
    """Inner products of the rows, float64 on the CPU.

    Products are formed in the stack's precision (at least float32) block by block and the blocks summed in float64;
    `double` forms them in float64 too. Rows whose squares would leave float32's range are rescaled by powers of two,
    which is exact.
    """
    rows = stack.detach().flatten(1) if stack.dim() > 1 else stack.detach()[:, None]
    if double or rows.dtype not in (torch.float32, torch.float64):
        rows = rows.to(torch.float64 if double else torch.float32)
    result = _blockwise(rows)
    squares = result.diagonal()
    if rows.dtype == torch.float32 and not bool(((squares > 1e-20) & (squares < 1e30)).all()):
        largest = rows.abs().amax(1) if rows.shape[1] else torch.zeros(len(rows), device=rows.device)
        exponent = torch.where((largest > 0) & largest.isfinite(), largest, 1.0).log2().floor()
        result = _blockwise(torch.ldexp(rows, -exponent[:, None]))
        factor = torch.ldexp(torch.ones((), dtype=torch.float64), exponent.double().cpu())
        result = result * factor[:, None] * factor
    return result


def _blockwise(rows: Tensor) -> Tensor:
    total = torch.zeros(len(rows), len(rows), dtype=torch.float64, device=rows.device)
    for start in range(0, rows.shape[1], _BLOCK):
        block = rows[:, start : start + _BLOCK]
        total += block @ block.T
    return total.cpu()


def cosines(gram: Float[Tensor, "T T"]) -> Float[Tensor, "T T"]:
    """Cosines of the angles between tasks; NaN beside a zero vector, whose angle is undefined."""
    norms = gram.diagonal().clamp(min=0).sqrt()
    result = (gram / norms[:, None] / norms).clamp(-1, 1)
    return result.masked_fill((norms == 0)[:, None] | (norms == 0), float("nan"))


def conflict_rate(gram: Float[Tensor, "T T"]) -> float:
    """Share of task pairs whose vectors point against each other (negative inner product); 0 for a single task."""
    pairs = torch.triu(torch.ones_like(gram, dtype=torch.bool), diagonal=1)
    return float((gram[pairs] < 0).double().mean()) if pairs.any() else 0.0


def sign_agreement(stack: Float[Tensor, "T ..."]) -> Float[Tensor, "T T"]:
    """Share of coordinates in which two tasks have the same sign, of those where both are non-zero; NaN if none are."""
    signs = stack.detach().flatten(1).sign().double()
    product = signs @ signs.T  # agreements minus disagreements
    both = signs.abs() @ signs.abs().T
    return ((product + both) / (2 * both)).cpu()


def nonnegative_least_squares(factor: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The x >= 0 that minimises |factor x - target|.

    Source: Lawson and Hanson 1974, "Solving Least Squares Problems", algorithm NNLS.
    Departures: the passive set is solved by a rank-revealing least squares, so dependent columns are allowed.
    Cost: O(n^4) at worst for n columns, a few solves in practice.
    """
    columns = factor.shape[1]
    x = np.zeros(columns)
    passive = np.zeros(columns, dtype=bool)
    tolerance = 10 * np.finfo(float).eps * max(factor.shape) * np.abs(factor).sum(0).max(initial=0.0)
    tolerance *= max(np.abs(target).max(initial=0.0), np.finfo(float).tiny)
    for _ in range(3 * columns):
        gradient = factor.T @ (target - factor @ x)
        gradient[passive] = -np.inf
        entering = int(gradient.argmax())
        if passive.all() or gradient[entering] <= tolerance:
            break
        passive[entering] = True
        while True:
            trial = np.zeros(columns)
            trial[passive] = np.linalg.lstsq(factor[:, passive], target, rcond=None)[0]
            blocking = passive & (trial <= 0)
            if not blocking.any():
                break
            ratio = np.full(columns, np.inf)
            ratio[blocking] = x[blocking] / np.maximum(x[blocking] - trial[blocking], np.finfo(float).tiny)
            x = x + ratio.min() * (trial - x)
            passive &= ~(blocking & (ratio <= ratio.min()))
            x[~passive] = 0.0
        x = trial
    return x


def _factor(gram: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(R, norms) with G = D R^T R D, D = diag(norms); a zero vector has norm 1 and a zero column of R."""
    norms = np.sqrt(np.maximum(gram.diagonal(), 0.0))
    safe = np.where(norms > 0, norms, 1.0)
    correlation = gram / safe[:, None] / safe
    values, vectors = np.linalg.eigh((correlation + correlation.T) / 2)
    return np.sqrt(np.maximum(values, 0.0))[:, None] * vectors.T, safe


def min_norm_point(gram: Float[Tensor, "T T"]) -> Float[Tensor, "T"]:
    """Convex weights of the shortest vector in the convex hull of the task vectors.

    min a^T G a over a >= 0, sum a = 1. For fixed proportions a the minimum of y^T G y + (1 - sum y)^2 over the length
    of y is m / (1 + m) with m = a^T G a, which grows with m; so y >= 0 minimising it is the solution up to its length,
    and the simplex constraint turns into a non-negative least-squares problem without a penalty to tune.
    """
    G = gram.detach().numpy().astype(np.float64)
    zero = G.diagonal() <= 0
    if zero.any():  # the hull contains the origin
        return torch.from_numpy(zero / zero.sum())
    R, norms = _factor(G)
    inverse = norms.min() / norms  # y = s * inverse; lengths relative to the shortest task vector
    solution = nonnegative_least_squares(np.vstack([R, inverse]), np.append(np.zeros(len(R)), 1.0)) * inverse
    return torch.from_numpy(solution / solution.sum())


def dual_cone_weights(gram: Float[Tensor, "T T"], weights: Float[Tensor, "K T"]) -> Float[Tensor, "K T"]:
    """For each row u: the v >= u that minimises v^T G v: sum u_t g_t projected onto the cone where no task conflicts.

    Source: Quinton and Rey 2024, arXiv:2406.16232, proposition 1. Tasks are first scaled to unit length, which is
    exact, so lengths that differ by many orders of magnitude do no harm.
    """
    R, norms = _factor(gram.detach().numpy().astype(np.float64))
    rows = []
    for u in weights.detach().numpy() * norms:
        rows.append((u + nonnegative_least_squares(R, -R @ u)) / norms)
    return torch.from_numpy(np.array(rows))
