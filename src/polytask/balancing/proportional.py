"""The convex problem behind Nash-MTL and FairGrad: positive weights w with (G w)_t = w_t^(-p)."""

import numpy as np

from polytask.core.geometry import hull_reaches_origin

_ITERATIONS = 200
_USUAL = 9  # iterations; a problem that takes more may have no solution
_SETTLED = 1e-9  # relative error after which one more step is enough
_CANCELS = 1e12  # terms of G w that are this much larger than their sum: the sum is rounding


def proportional_weights(unit: np.ndarray, norms: np.ndarray, power: float) -> np.ndarray | None:
    """The w > 0 with (G w)_t = w_t^(-power) for all t; None if there is none.

    Args:
        unit: Gram matrix of the vectors scaled to unit length; none may be zero.
        norms: their lengths, so G = D C D.
        power: p > 0.

    w minimises w^T G w / 2 + sum of phi(w_t), phi' = -w^(-power), which is convex: a solution is unique, and it exists
    exactly if no convex combination of the vectors vanishes. With x_t = |g_t| w_t, s = C x and k_t = |g_t|^(power - 1)
    the equation is log s + power log x = log k. For power 1 the lengths play no part; its solution, where s = C x
    holds already, is the start for every other.
    """
    ones, zeros = np.ones(len(norms)), np.zeros(len(norms))
    found = _newton(unit, ones, ones, 1.0, zeros)
    if found is not None and power != 1.0:
        found = _newton(unit, *found, power, (power - 1) * np.log(norms / norms.max()))
    return None if found is None else found[0] / norms * norms.max() ** ((power - 1) / (power + 1))


def _newton(
    unit: np.ndarray, x: np.ndarray, s: np.ndarray, power: float, log_k: np.ndarray
) -> tuple[np.ndarray, np.ndarray] | None:
    """The positive x and s = C x with log s + power log x = log k; None if there are none.

    Newton's method on both equations in x and s, as in interior-point methods: it needs few steps where one on x alone
    would crawl along the boundary x = 0.
    """
    diagonal = np.arange(len(x))
    for iteration in range(_ITERATIONS):
        if iteration == _USUAL and hull_reaches_origin(unit, np.ones(len(x))):
            return None
        gap, error = s - unit @ x, np.log(s) + power * np.log(x) - log_k
        terms = np.abs(unit) @ x
        settled = float((np.abs(gap) / (s + 1e-5 * terms)).max()) < _SETTLED and float(np.abs(error).max()) < _SETTLED
        matrix = unit.copy()
        matrix[diagonal, diagonal] += power * s / x
        try:
            x_change = np.linalg.solve(matrix, gap - s * error) / x
        except np.linalg.LinAlgError:  # x grows without bound
            return None
        s_change = -error - power * x_change
        step = min(1.0, 0.9 / max(-float(x_change.min()), -float(s_change.min()), 0.1))
        x, s = x * (1 + step * x_change), s * (1 + step * s_change)
        if settled:
            return (x, s) if float((terms / s).max()) <= _CANCELS else None
    return None
