"""Small convex quadratic programs over the non-negative orthant: what the projections in `geometry` come down to.

Many right-hand sides are solved at once. A few steps of projected gradients guess which variables are positive, and
block principal pivoting finds that set exactly in a few batched solves. Where every row's minimum is 0 (many tasks in
few dimensions) one row's solution serves all; rows on which pivoting cycles go to an active-set method. A solution is
accepted only if it meets the optimality conditions; the last resort is Lawson and Hanson's algorithm on a factor of M.
"""

import numpy as np

_SHIFT = 1e-13  # added to the unit diagonal, so that dependent tasks (a singular matrix) are no special case
_EPSILON = float(np.finfo(float).eps)
_TINY = float(np.finfo(float).tiny)
_FEW = 16  # variables, up to which one row is solved about as fast alone as with others
_RANK = 1e-14  # eigenvalues of M below this times the largest are noise


def nonnegative_quadratic(matrix: np.ndarray, linear: np.ndarray) -> np.ndarray:
    """For each row b of `linear`: the x >= 0 that minimises x^T M x / 2 - b^T x.

    Args:
        matrix: M [n, n], symmetric positive semi-definite, entries of size about 1.
        linear: [K, n]; the minimum must exist (b in the range of M, or M definite). Rows may differ in size.

    Departures from the two methods named below: `_SHIFT` on the diagonal, which moves the result by at most about 2e-7
    in the norm that M defines.
    Cost: a few batched solves whose size is the number of positive variables, some n of them for degenerate problems.
    """
    size = np.abs(linear).max(axis=1, initial=0.0)
    scaled = linear / np.where(size > 0, size, 1.0)[:, None]
    result, accepted = np.zeros_like(scaled), np.zeros(len(scaled), dtype=bool)
    is_singular = False
    if len(scaled) > 2:
        values, vectors = _eigen(matrix)
        is_singular = bool(values[0] <= _RANK * values[-1]) and bool(matrix.diagonal().all())  # no zero vector
        if is_singular:
            result, accepted = _spanned(matrix, scaled, values, vectors)
    if not accepted.all() and not is_singular:  # there pivoting would cycle on most rows
        result[~accepted], accepted[~accepted] = _block_pivoting(matrix, scaled[~accepted])
    if not accepted.all():
        one_by_one = _compiled if is_singular or len(matrix) > _FEW else _active_set
        result[~accepted], accepted[~accepted] = one_by_one(matrix, scaled[~accepted])
    if not accepted.all():
        factor = square_root(matrix)
        inverse = np.linalg.pinv(factor.T, rcond=1e-9)
        for row in np.flatnonzero(~accepted):
            result[row] = nonnegative_least_squares(factor, inverse @ scaled[row])
    return result * size[:, None]


def _nnls(factor: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The x >= 0 with the least |factor x - right|."""
    from scipy.optimize import nnls  # here: its import takes longer than many a merge's start, and few rules solve this

    return nnls(factor, right, maxiter=30 * factor.shape[1])[0]


def _eigen(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    return np.maximum(values, 0.0), vectors


def _spanned(
    matrix: np.ndarray, linear: np.ndarray, values: np.ndarray, vectors: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(solutions, whether each is optimal) where some p > 0 has M p = 0: then M x = b can be met with x >= 0.

    Any solution of M x = b will do, with as much of p added as makes it positive.
    """
    kept = values > _RANK * values[-1]
    factor = np.sqrt(values[kept, None]) * vectors[:, kept].T
    ones = np.ones(len(matrix))
    p = ones + _nnls(factor, -factor @ ones)
    x = (linear @ vectors[:, kept] / values[kept]) @ vectors[:, kept].T
    x += np.max(-x / p, axis=1, keepdims=True).clip(min=0) * p
    x = np.maximum(x, 0.0)
    return x, _optimal(x, x @ matrix - linear)


def _compiled(matrix: np.ndarray, linear: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(solutions, whether each is optimal) by scipy's form of the last resort: faster for many variables.

    In as many dimensions as M has, or in all of them, shifted, if some b is not in M's range.
    """
    values, vectors = _eigen(matrix)
    kept = values > _RANK * values[-1]
    if kept.all() or np.abs(linear @ vectors[:, ~kept]).max() > 1e-9:
        values, kept = values + _SHIFT, np.ones_like(kept)
    lengths = np.sqrt(values[kept])
    factor, targets = lengths[:, None] * vectors[:, kept].T, linear @ vectors[:, kept] / lengths
    x = np.stack([_nnls(factor, target) for target in targets])
    return x, _optimal(x, x @ matrix - linear)


def _block_pivoting(matrix: np.ndarray, linear: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(solutions, whether each is optimal): exchanges every variable that violates a condition, while that helps.

    Source: Portugal, Judice and Vicente 1994, "A comparison of block pivoting and interior-point algorithms for linear
    least squares problems with nonnegative variables", without the single pivots: rows that make no progress are left
    to other methods.
    """
    rows, n = linear.shape
    result, accepted = np.zeros((rows, n)), np.zeros(rows, dtype=bool)
    positive = _guess(matrix, linear)
    fewest, chances = np.full(rows, n + 1), np.full(rows, 3)
    active = np.arange(rows)
    for _ in range(3 if n <= _FEW else 8):  # then a row counts as cycling
        if not len(active):
            break
        b, chosen = linear[active], positive[active]
        x = _solved(matrix, b, chosen)
        slack = x @ matrix - b
        spread = 1.0 + np.abs(x).max(1, keepdims=True)
        violated = np.where(chosen, x < -1e-14 * spread, slack < -3 * _SHIFT * spread)
        number = violated.sum(1)
        done = number == 0
        if done.any():
            solution = np.maximum(x[done], 0.0)
            result[active[done]], accepted[active[done]] = solution, _optimal(solution, slack[done])
        better = number < fewest[active]
        chances[active] = np.where(better, 3, chances[active] - 1)
        fewest[active] = np.minimum(fewest[active], number)
        positive[active] = chosen ^ violated
        active = active[~done & (chances[active] >= 0)]
    return result, accepted


def _active_set(matrix: np.ndarray, linear: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same one variable at a time, every row at once; each exchange lowers the objective, so none comes back.

    Source: Lawson and Hanson 1974, "Solving Least Squares Problems", algorithm NNLS, on the normal equations. A
    variable that depends on the positive ones has no gradient and never joins them, so a singular M does no harm.
    """
    rows, n = linear.shape
    x = np.zeros((rows, n))
    positive, settled = np.zeros((rows, n), dtype=bool), np.ones(rows, dtype=bool)  # settled: x solves its positive set
    active = np.arange(rows)
    for _ in range(10 * n):
        gradient = np.where(positive[active], -np.inf, linear[active] - x[active] @ matrix)
        entering = gradient.argmax(1)
        improves = gradient.max(1) > 3 * _SHIFT * (1.0 + x[active].max(1))
        enters = settled[active] & improves
        positive[active[enters], entering[enters]] = True
        active = active[~settled[active] | improves]
        if not len(active):
            break
        old, chosen = x[active], positive[active]
        trial = _solved(matrix, linear[active], chosen)
        blocking = chosen & (trial <= 0)
        with np.errstate(divide="ignore", invalid="ignore"):
            step = np.where(blocking, old / (old - trial), np.inf)
        length = np.minimum(np.nan_to_num(step, nan=0.0, posinf=np.inf).min(1, keepdims=True), 1.0)
        leaves = blocking & (np.nan_to_num(step, nan=0.0, posinf=np.inf) <= length)
        x[active] = np.where(chosen & ~leaves, old + length * (trial - old), 0.0)
        positive[active] = chosen & ~leaves
        settled[active] = ~blocking.any(1)
    return x, settled & _optimal(x, x @ matrix - linear)


def _guess(matrix: np.ndarray, linear: np.ndarray) -> np.ndarray:
    """Which variables are positive after ten accelerated projected gradient steps; for few variables, after one.

    Source: Beck and Teboulle 2009, "A fast iterative shrinkage-thresholding algorithm", with the projection as step.
    """
    if len(matrix) <= _FEW:  # a guess would cost more than the solves that it spares
        return linear > 0
    length = 1.0 / np.abs(matrix).sum(1).max()  # no smaller than the largest eigenvalue's
    x = ahead = np.zeros_like(linear)
    momentum = 1.0
    for _ in range(10):
        new = np.maximum(ahead - length * (ahead @ matrix - linear), 0.0)
        grown = (1 + (1 + 4 * momentum * momentum) ** 0.5) / 2
        ahead = new + (momentum - 1) / grown * (new - x)
        x, momentum = new, grown
    return x > 0


def _solved(matrix: np.ndarray, b: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """The x with M x = b on each row's chosen variables and 0 elsewhere; smaller ones are padded with the identity."""
    rows, n = b.shape
    width = int(chosen.sum(1).max(initial=0))
    order = np.argsort(~chosen, axis=1, kind="stable")[:, :width]  # the chosen variables first
    used = np.take_along_axis(chosen, order, 1)
    systems = matrix[order[:, :, None], order[:, None, :]]
    systems *= used[:, :, None] & used[:, None, :]
    diagonal = np.arange(width)
    systems[:, diagonal, diagonal] += np.where(used, _SHIFT, 1.0)
    right = np.where(used, np.take_along_axis(b, order, 1), 0.0)
    small = np.linalg.solve(systems, right[:, :, None])[:, :, 0]
    large = (
        np.abs(small).max(1, initial=0.0) > 10.0
    )  # vectors that nearly cancel: there the shift shows, one step removes it
    if large.any():
        shifted = systems[large]
        residual = right[large] - (shifted @ small[large, :, None])[:, :, 0] + _SHIFT * small[large]
        small[large] += np.linalg.solve(shifted, residual[:, :, None])[:, :, 0]
    x = np.zeros((rows, n))
    np.put_along_axis(x, order, small, 1)
    return x


def _optimal(x: np.ndarray, slack: np.ndarray) -> np.ndarray:
    """Whether the duality gap, a bound on the squared error, is within what the rounding of M leaves undecided."""
    length = x.sum(1)
    gap = np.abs((x * slack).sum(1)) + np.maximum(-slack.min(1, initial=0.0), 0.0) * length
    return gap <= 1e-13 + 1e3 * _EPSILON * length**2


def nonnegative_least_squares(factor: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The x >= 0 that minimises |factor x - target|.

    Source: Lawson and Hanson 1974, "Solving Least Squares Problems", algorithm NNLS.
    Departures: the passive set is solved by a rank-revealing least squares, so dependent columns are allowed.
    Cost: O(n^4) at worst for n columns, a few solves in practice.
    """
    columns = factor.shape[1]
    x = np.zeros(columns)
    passive = np.zeros(columns, dtype=bool)
    tolerance = 10 * _EPSILON * max(factor.shape) * np.abs(factor).sum(0).max(initial=0.0)
    tolerance *= max(np.abs(target).max(initial=0.0), _TINY)
    for _ in range(3 * columns):
        gradient = factor.T @ (target - factor @ x)
        gradient[passive] = -np.inf
        entering = int(gradient.argmax())
        if passive.all() or gradient[entering] <= tolerance:
            break
        passive[entering] = True
        while True:
            trial = np.zeros(columns)
            trial[passive] = np.linalg.lstsq(factor[:, passive], target, rcond=1e-9)[0]
            blocking = passive & (trial <= 0)
            if not blocking.any():
                break
            ratio = np.full(columns, np.inf)
            ratio[blocking] = x[blocking] / np.maximum(x[blocking] - trial[blocking], _TINY)
            x = x + ratio.min() * (trial - x)
            passive &= ~(blocking & (ratio <= ratio.min()))
            x[~passive] = 0.0
        x = trial
    return x


def square_root(matrix: np.ndarray) -> np.ndarray:
    """R with R^T R = M for a symmetric positive semi-definite M."""
    values, vectors = _eigen(matrix)
    return np.sqrt(values)[:, None] * vectors.T
