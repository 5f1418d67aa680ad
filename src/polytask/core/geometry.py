"""The geometry of task vectors: inner products, angles, signs, and the two projections that rules are made of.

Everything here works on a Gram matrix G (G[i, j] is the inner product of tasks i and j) or on one parameter's stack
[T, *shape], so it serves gradients and fine-tuning deltas alike. G and the solvers are float64 on the CPU.
"""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from polytask.core.quadratic import nonnegative_quadratic

_BLOCK = 1 << 16  # columns whose products are summed in the stack's own precision before float64 takes over


def gram(stack: Float[Tensor, "T ..."], *, double: bool = False) -> Float[Tensor, "T T"]:
    """Inner products of the rows, float64 on the CPU.

    Products are formed in the stack's precision (at least float32) block by block and the blocks summed in float64;
    `double` forms them in float64 too. Rows whose squares would leave float32's range are rescaled by powers of two,
    which is exact.
    """
    rows = as_rows(stack.detach())
    if double or rows.dtype not in (torch.float32, torch.float64):
        rows = rows.to(torch.float64 if double else torch.float32)
    result = _blockwise(rows)
    squares = result.diagonal()
    if rows.dtype == torch.float64 or rows.shape[1] == 0 or bool(((squares > 1e-20) & (squares < 1e30)).all()):
        return result
    largest = rows.abs().amax(1)
    if bool((largest == 0).cpu().logical_or((squares > 1e-20) & (squares < 1e30)).all()):
        return result
    exponent = torch.where((largest > 0) & largest.isfinite(), largest, 1.0).log2().floor()
    result = _blockwise(torch.ldexp(rows, -exponent[:, None]))
    factor = torch.ldexp(torch.ones((), dtype=torch.float64), exponent.double().cpu())
    return result * factor[:, None] * factor


def cross_gram(stack: Float[Tensor, "T ..."], other: Float[Tensor, "T ..."]) -> Float[Tensor, "T T"]:
    """Inner products of the rows with those of another stack, float64 on the CPU, formed as `gram` forms them."""
    (rows, left), (others, right) = _in_range(stack), _in_range(other)
    return _blockwise(rows, others) * left[:, None] * right


def _in_range(stack: Tensor) -> tuple[Tensor, Tensor]:
    """(rows, factors): rows times their factors, powers of two, are the stack's; products of rows fit their type."""
    rows = as_rows(stack.detach())
    rows = rows if rows.dtype == torch.float64 else rows.float()
    ones = torch.ones(len(rows), dtype=torch.float64)
    if rows.dtype == torch.float64 or rows.shape[1] == 0:
        return rows, ones
    largest = rows.abs().amax(1)
    if bool(((largest == 0) | ((largest > 1e-10) & (largest < 1e12))).all()):
        return rows, ones
    exponent = torch.where((largest > 0) & largest.isfinite(), largest, 1.0).log2().floor()
    return torch.ldexp(rows, -exponent[:, None]), torch.ldexp(ones, exponent.double().cpu())


def as_rows(stack: Float[Tensor, "T ..."]) -> Float[Tensor, "T P"]:
    """One row a task, for parameters of any shape."""
    return stack.flatten(1) if stack.dim() > 1 else stack[:, None]


def _blockwise(rows: Tensor, others: Tensor | None = None) -> Tensor:
    """Inner products of the rows with the others, or with one another."""
    others = rows if others is None else others
    total = torch.zeros(len(rows), len(others), dtype=torch.float64, device=rows.device)
    for start in range(0, rows.shape[1], _BLOCK):
        total += rows[:, start : start + _BLOCK] @ others[:, start : start + _BLOCK].T
    return total.cpu()


def cosines(gram: Float[Tensor, "*rows T T"]) -> Float[Tensor, "*rows T T"]:
    """Cosines of the angles between tasks; NaN beside a zero vector, whose angle is undefined."""
    norms = gram.diagonal(dim1=-2, dim2=-1).clamp(min=0).sqrt()
    one, other = norms[..., :, None], norms[..., None, :]
    return (gram / one / other).clamp(-1, 1).masked_fill((one == 0) | (other == 0), float("nan"))


def conflict_rate(gram: Float[Tensor, "T T"]) -> float:
    """Share of task pairs whose vectors point against each other (negative inner product); 0 for a single task."""
    pairs = torch.triu(torch.ones_like(gram, dtype=torch.bool), diagonal=1)
    return float((gram[pairs] < 0).double().mean()) if pairs.any() else 0.0


def sign_agreement(stack: Float[Tensor, "T ..."]) -> Float[Tensor, "T T"]:
    """Share of coordinates in which two tasks have the same sign, of those where both are non-zero; NaN if none are."""
    signs = as_rows(stack.detach()).sign().double()
    product = signs @ signs.T  # agreements minus disagreements
    both = signs.abs() @ signs.abs().T
    return ((product + both) / (2 * both)).cpu()


def nearest_in_simplex(point: np.ndarray) -> np.ndarray:
    """The convex weights nearest to a point [T]: what is above a threshold, shifted so that it sums to 1.

    Source: Held, Wolfe and Crowder 1974, "Validation of subgradient optimization".
    """
    values = point - point.max()  # a shift changes nothing, and large numbers would swallow the 1
    falling = np.sort(values)[::-1]
    excess = (np.cumsum(falling) - 1) / np.arange(1, len(falling) + 1)
    weights = np.maximum(values - excess[np.flatnonzero(falling > excess)[-1]], 0.0)
    return weights / weights.sum()


def min_norm_point(gram: Float[Tensor, "T T"]) -> Float[Tensor, "T"]:
    """Convex weights of the shortest vector in the convex hull of the task vectors.

    min a^T G a over a >= 0, sum a = 1. For fixed proportions a the minimum of y^T G y + (1 - sum y)^2 over the length
    of y is m / (1 + m) with m = a^T G a, which grows with m; so the y >= 0 minimising it is the solution up to its
    length, and the simplex constraint needs no penalty to tune. Lengths are relative to the shortest task vector, so m
    is at most 1.
    """
    G = gram.detach().numpy().astype(np.float64)
    zero = G.diagonal() <= 0
    if zero.any():  # the hull contains the origin
        return torch.from_numpy(zero / zero.sum())
    correlation, norms = unit_gram(G)
    inverse = norms.min() / norms
    solution = nonnegative_quadratic(correlation + np.outer(inverse, inverse), inverse[None])[0] * inverse
    return torch.from_numpy(solution / solution.sum())


def dual_cone_weights(gram: Float[Tensor, "T T"], weights: Float[Tensor, "K T"]) -> Float[Tensor, "K T"]:
    """For each row u: the v >= u that minimises v^T G v, so sum v_t g_t is sum u_t g_t projected onto the dual cone.

    The dual cone holds the directions that conflict with no task.

    Source: Quinton and Rey 2024, arXiv:2406.16232, proposition 1. Tasks are first scaled to unit length, which is
    exact, so lengths that differ by many orders of magnitude do no harm. A zero vector keeps its weight.
    """
    correlation, norms = unit_gram(gram.detach().numpy().astype(np.float64))
    u = weights.detach().numpy() * norms
    extra = nonnegative_quadratic(correlation, -u @ correlation)
    return torch.from_numpy(np.where(extra > 0, (u + extra) / norms, weights.detach().numpy()))


def unit_gram(gram: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(C, norms) with G = D C D, D = diag(norms), symmetric, unit diagonal; a zero vector has norm 1 and a zero row.

    C is the Gram matrix of the unit vectors: what a rule computes from it does not lose digits when lengths differ.
    """
    norms = np.sqrt(np.maximum(gram.diagonal(), 0.0))
    safe = np.where(norms > 0, norms, 1.0)
    correlation = (gram + gram.T) / 2 / safe[:, None] / safe
    np.fill_diagonal(correlation, norms > 0)
    return correlation, safe


def hull_reaches_origin(unit: np.ndarray, inverse: np.ndarray) -> bool:
    """Whether a convex combination of vectors vanishes, as far as the rounding of their Gram matrix lets one tell.

    `unit` is the Gram matrix of the unit vectors, none zero, and `inverse` their inverse lengths, at most about 1.
    """
    y = nonnegative_quadratic(unit + np.outer(inverse, inverse), inverse[None])[0]  # see min_norm_point
    return float(y @ unit @ y) <= 1e-13 * float(y.sum()) ** 2


def pseudo_solve(unit: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(x, C x) with x = C^+ b: the shortest of those that bring C x nearest to b, C the Gram matrix of unit vectors.

    Singular values of the vectors below 1e-6 times the largest count as 0 (eigenvalues of C: 1e-12).
    """
    values, vectors = np.linalg.eigh(unit)
    kept = values > 1e-12 * values[-1]
    basis = vectors[:, kept]
    coordinates = right @ basis
    return basis @ (coordinates / values[kept]), basis @ coordinates
