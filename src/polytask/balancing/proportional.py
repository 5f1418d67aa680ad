"""The convex problem behind Nash-MTL and FairGrad: positive weights w with (G w)_t = w_t^(-p)."""

import numpy as np

from polytask.core.geometry import hull_reaches_origin

_ITERATIONS = 200
_USUAL = 9  # iterations; a problem that takes more may have no solution
_CANCELS = 1e12  # terms of G w that are this much larger than their sum: the sum is rounding


def proportional_weights(unit: np.ndarray, norms: np.ndarray, power: float) -> np.ndarray | None:
    """The w > 0 with (G w)_t = w_t^(-power) for all t; None if there is none.

    Args:
        unit: Gram matrix of the vectors scaled to unit length; none may be zero.
        norms: their lengths, so G = D C D.
        power: p > 0.

    w minimises w^T G w / 2 + sum of phi(w_t), phi' = -w^(-p), which is convex: a solution is unique, and it exists
    exactly if no convex combination of the vectors vanishes. With x_t = |g_t| w_t that is (C x)_t = k_t x_t^(-p),
    k_t = |g_t|^(p - 1), solved by Newton's method on the relative change of x, whose matrix X C X + p diag(k x^(1-p))
    is positive definite even if C is singular; steps that pass the minimum along their line are halved.
    """
    reference = norms.max()
    k = (norms / reference) ** (power - 1)
    x = k ** (1 / (1 + power))  # the solution for orthogonal vectors
    value, wanted = unit @ x * x, k * x ** (1 - power)
    for iteration in range(_ITERATIONS):
        if iteration == _USUAL and hull_reaches_origin(unit, np.ones(len(x))):
            return None
        matrix = unit * x[:, None] * x
        matrix[np.arange(len(x)), np.arange(len(x))] += power * wanted
        change = np.linalg.solve(matrix, wanted - value)
        slope = float(change @ (wanted - value))  # of the descent at the start of the line, positive
        step = min(1.0, 0.9 / max(-float(change.min()), 1e-300))
        while True:
            trial = x * (1 + step * change)
            value, wanted = unit @ trial * trial, k * trial ** (1 - power)
            left = float((change / (1 + step * change)) @ (wanted - value))
            if left >= -0.5 * slope or step < 1e-6:
                break
            step /= 2
        x = trial
        if float(((np.abs(unit) @ x) * x / wanted).max()) > _CANCELS:
            return None
        if step == 1.0 and float(np.abs(change).max()) < 1e-7:
            return x / norms * reference ** ((power - 1) / (power + 1))
    return None
