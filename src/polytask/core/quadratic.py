"""Small convex quadratic programs over the non-negative orthant: what the projections in `geometry` come down to.

Few variables go to a compiled active-set solver at once. For many, with many right-hand sides, a splitting method
guesses which variables are positive, and batched solves of that size give the exact solution. Where every row's
minimum is 0 (many tasks in few dimensions) one row's solution serves all. A solution is accepted only if it meets the
optimality conditions; what is not goes to the next method, and last to Lawson and Hanson's algorithm on a factor of M.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

_SHIFT = 1e-13  # added to the unit diagonal, so that dependent tasks (a singular matrix) are no special case
_EPSILON = float(np.finfo(float).eps)
_TINY = float(np.finfo(float).tiny)
_FEW = 16  # variables, up to which one row is solved about as fast alone as with others
_LARGE = 10.0  # a solution for vectors that nearly cancel: there the shift shows
_RANK = 1e-14  # eigenvalues of M below this times the largest are noise
_PENALTIES = ((1.0, 1), (0.1, 2), (0.05, 4), (0.03, 8))  # of ADMM, ten iterations that many times; the small ones are
# for vectors that nearly cancel
_RELAXATION = 1.8
_HOPELESS = 0.05  # rows of which none is solved with that penalty are left to other methods


@dataclass(frozen=True)
class _Matrix:
    """M with its eigenvalues, which are taken once."""

    entries: np.ndarray

    def __len__(self) -> int:
        return len(self.entries)

    @cached_property
    def eigen(self) -> tuple[np.ndarray, np.ndarray]:
        """(values, rising and none below 0; vectors, the columns)"""
        values, vectors = np.linalg.eigh((self.entries + self.entries.T) / 2)
        return np.maximum(values, 0.0), vectors

    @cached_property
    def rank(self) -> int:
        values, _ = self.eigen
        return int((values > _RANK * values[-1]).sum())

    @property
    def is_singular(self) -> bool:
        return self.rank < len(self)


Solved = tuple[np.ndarray, np.ndarray]  # solutions, and whether each is optimal


def nonnegative_quadratic(matrix: np.ndarray, linear: np.ndarray) -> np.ndarray:
    """For each row b of `linear`: the x >= 0 that minimises x^T M x / 2 - b^T x.

    Args:
        matrix: M [n, n], symmetric positive semi-definite, entries of size about 1.
        linear: [K, n]; the minimum must exist (b in the range of M, or M definite). Rows may differ in size.

    Departures from the methods named below: `_SHIFT` on the diagonal, which moves the result by at most about 2e-7
    in the norm that M defines.
    Cost: for few variables a compiled solver's, row by row; for many some products of size n and a few batched solves
    whose size is the number of positive variables.
    """
    size = np.abs(linear).max(axis=1, initial=0.0)
    scaled = linear / np.where(size > 0, size, 1.0)[:, None]
    result, accepted = np.zeros_like(scaled), np.zeros(len(scaled), dtype=bool)
    problem = _Matrix(matrix)
    for method in _methods(*scaled.shape):
        rest = np.flatnonzero(~accepted)
        if not len(rest):
            break
        result[rest], accepted[rest] = method(problem, scaled[rest])
    return result * size[:, None]


def _methods(rows: int, variables: int) -> Iterator[Callable[[_Matrix, np.ndarray], Solved]]:
    """What is tried, one after the other, on the rows that are not solved yet; the last solves all."""
    few = variables <= _FEW
    if few:
        yield _by_cholesky
    if rows > 2:
        yield _spanned
        if not few:
            yield _splitting
    yield _block_pivoting
    if few:
        yield _active_set
    elif rows <= 2:
        yield _by_cholesky
    yield _reduced
    yield _last_resort


def _spanned(matrix: _Matrix, linear: np.ndarray) -> Solved:
    """Where some p > 0 has M p = 0: then M x = b can be met with x >= 0, by any solution with enough of p added."""
    if not matrix.is_singular or not matrix.entries.diagonal().all():  # a zero vector has no part in a p
        return _none(linear)
    values, vectors = matrix.eigen
    kept = slice(len(matrix) - matrix.rank, None)
    factor = np.sqrt(values[kept, None]) * vectors[:, kept].T
    ones = np.ones(len(matrix))
    p = ones + _nnls(factor, -factor @ ones)
    x = (linear @ vectors[:, kept] / values[kept]) @ vectors[:, kept].T
    x += np.max(-x / p, axis=1, keepdims=True).clip(min=0) * p
    x = np.maximum(x, 0.0)
    return x, _optimal(x, x @ matrix.entries - linear)


def _splitting(matrix: _Matrix, linear: np.ndarray) -> Solved:
    """Finds out by ADMM which variables are positive, and solves for those of the rows on which that has settled.

    Source: Boyd, Parikh, Chu, Peleato and Eckstein 2011, "Distributed optimization and statistical learning via the
    alternating direction method of multipliers", section 5.2, over-relaxed as in section 3.4.3. A row is tried when
    another five iterations that move it as much as the last five did would change no sign.
    """
    result, accepted = _none(linear)
    if matrix.rank <= _FEW:  # there the compiled solver is faster
        return result, accepted
    values, vectors = matrix.eigen
    active, rounds = np.arange(len(linear)), 2 if matrix.is_singular else 8
    z, y = np.zeros_like(linear), np.zeros_like(linear)  # the non-negative variables, and the multipliers
    tried = np.zeros(linear.shape, dtype=bool)
    for penalty, times in _PENALTIES:
        inverse = (vectors * (penalty / (values + penalty))) @ vectors.T
        constant = _RELAXATION / penalty * (linear @ inverse)
        for _ in range(times):
            z, u = _iterated(inverse, constant[active], z, y / penalty)
            before = z + u
            z, u = _iterated(inverse, constant[active], z, u)
            y, now = penalty * u, z + u  # where that is above 0, z is
            is_new = ((now > 0) != tried).any(1) & ((now > 0).sum(1) <= matrix.rank)
            settled = np.flatnonzero(is_new & (np.abs(now - before) < np.abs(now)).all(1))
            tried[settled] = now[settled] > 0
            chosen = active[settled]
            result[chosen], accepted[chosen] = _pivoted(matrix.entries, linear[chosen], tried[settled], rounds)
            left = ~accepted[active]
            active, z, y, tried = active[left], z[left], y[left], tried[left]
            if not len(active):
                return result, accepted
        if penalty == _HOPELESS and not accepted.any():
            break
    return result, accepted


def _iterated(inverse: np.ndarray, constant: np.ndarray, z: np.ndarray, u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    for _ in range(5):
        x = (_RELAXATION * (z - u)) @ inverse
        x += constant
        x += u
        x -= (_RELAXATION - 1) * z
        z = np.maximum(x, 0.0)
        u = x - z
    return z, u


def _block_pivoting(matrix: _Matrix, linear: np.ndarray) -> Solved:
    """Exchanges every variable that violates a condition, while that helps; on a singular M most rows would cycle."""
    if len(linear) > 2 and matrix.is_singular:
        return _none(linear)
    return _pivoted(matrix.entries, linear, linear > 0, 3 if len(matrix) <= _FEW else 8)


def _pivoted(matrix: np.ndarray, linear: np.ndarray, positive: np.ndarray, rounds: int) -> Solved:
    """From a first guess at the positive variables.

    Source: Portugal, Judice and Vicente 1994, "A comparison of block pivoting and interior-point algorithms for linear
    least squares problems with nonnegative variables", without the single pivots: rows that make no progress are left
    to other methods.
    """
    result, accepted = _none(linear)
    fewest, chances = np.full(len(linear), len(matrix) + 1), np.full(len(linear), 3)
    active = np.arange(len(linear))
    for _ in range(rounds):
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


def _active_set(matrix: _Matrix, linear: np.ndarray) -> Solved:
    """The same one variable at a time, every row at once; each exchange lowers the objective, so none comes back.

    Source: Lawson and Hanson 1974, "Solving Least Squares Problems", algorithm NNLS, on the normal equations. A
    variable that depends on the positive ones has no gradient and never joins them, so a singular M does no harm.
    """
    entries, (rows, n) = matrix.entries, linear.shape
    x = np.zeros((rows, n))
    positive, settled = np.zeros((rows, n), dtype=bool), np.ones(rows, dtype=bool)  # settled: x solves its positive set
    active = np.arange(rows)
    for _ in range(10 * n):
        gradient = np.where(positive[active], -np.inf, linear[active] - x[active] @ entries)
        entering = gradient.argmax(1)
        improves = gradient.max(1) > 3 * _SHIFT * (1.0 + x[active].max(1))
        enters = settled[active] & improves
        positive[active[enters], entering[enters]] = True
        active = active[~settled[active] | improves]
        if not len(active):
            break
        old, chosen = x[active], positive[active]
        trial = _solved(entries, linear[active], chosen)
        blocking = chosen & (trial <= 0)
        with np.errstate(divide="ignore", invalid="ignore"):
            step = np.where(blocking, old / (old - trial), np.inf)
        length = np.minimum(np.nan_to_num(step, nan=0.0, posinf=np.inf).min(1, keepdims=True), 1.0)
        leaves = blocking & (np.nan_to_num(step, nan=0.0, posinf=np.inf) <= length)
        x[active] = np.where(chosen & ~leaves, old + length * (trial - old), 0.0)
        positive[active] = chosen & ~leaves
        settled[active] = ~blocking.any(1)
    return x, settled & _optimal(x, x @ entries - linear)


def _by_cholesky(matrix: _Matrix, linear: np.ndarray) -> Solved:
    """Row by row by scipy's form of the last resort; only solutions that are beyond doubt."""
    factor = _factor(matrix.entries, 1e-2 * _SHIFT)
    if factor is None:
        factor = _factor(matrix.entries, _SHIFT)
    if factor is None:
        return _none(linear)
    x = np.stack([_nnls(factor, target) for target in np.linalg.solve(factor.T, linear.T).T])
    return x, _gap(x, x @ matrix.entries - linear) <= 1e-12


def _factor(matrix: np.ndarray, shift: float) -> np.ndarray | None:
    """R with R^T R = M, shifted; None if that is too far from definite."""
    try:
        return np.linalg.cholesky(matrix + shift * np.eye(len(matrix))).T
    except np.linalg.LinAlgError:
        return None


def _reduced(matrix: _Matrix, linear: np.ndarray) -> Solved:
    """The same in as many dimensions as M has, or in all of them, shifted, if some b is not in M's range."""
    values, vectors = matrix.eigen
    kept = values > _RANK * values[-1]
    if kept.all() or np.abs(linear @ vectors[:, ~kept]).max() > 1e-9:
        values, kept = values + _SHIFT, np.ones_like(kept)
    lengths = np.sqrt(values[kept])
    factor, targets = lengths[:, None] * vectors[:, kept].T, linear @ vectors[:, kept] / lengths
    x = np.stack([_nnls(factor, target) for target in targets])
    return x, _optimal(x, x @ matrix.entries - linear)


def _last_resort(matrix: _Matrix, linear: np.ndarray) -> Solved:
    factor = square_root(matrix.entries)
    inverse = np.linalg.pinv(factor.T, rcond=1e-9)
    x = np.stack([nonnegative_least_squares(factor, inverse @ row) for row in linear])
    return x, np.ones(len(linear), dtype=bool)


def _none(linear: np.ndarray) -> Solved:
    return np.zeros_like(linear), np.zeros(len(linear), dtype=bool)


def _nnls(factor: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The x >= 0 with the least |factor x - right|; 0 if it is not found."""
    from scipy.optimize import nnls  # here: its import takes longer than many a merge's start, and few rules solve this

    try:
        return nnls(factor, right, maxiter=30 * factor.shape[1])[0]
    except RuntimeError:  # it cycles
        return np.zeros(factor.shape[1])


def _solved(matrix: np.ndarray, b: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """The x with M x = b on each row's chosen variables and 0 elsewhere; smaller ones are padded with the identity."""
    rows, n = b.shape
    width = int(chosen.sum(1).max(initial=0))
    order = np.argsort(~chosen, axis=1, kind="stable")[:, :width]  # the chosen variables first
    used = np.take_along_axis(chosen, order, 1)
    padded = np.zeros((n + 1, n + 1))
    padded[:n, :n] = matrix
    place = np.where(used, order, n)
    systems = padded[place[:, :, None], place[:, None, :]]
    diagonal = np.arange(width)
    systems[:, diagonal, diagonal] += np.where(used, _SHIFT, 1.0)
    right = np.where(used, np.take_along_axis(b, order, 1), 0.0)
    small = np.linalg.solve(systems, right[:, :, None])[:, :, 0]
    large = np.abs(small).max(1, initial=0.0) > _LARGE  # one step removes the shift
    if large.any():
        shifted = systems[large]
        residual = right[large] - (shifted @ small[large, :, None])[:, :, 0] + _SHIFT * small[large]
        small[large] += np.linalg.solve(shifted, residual[:, :, None])[:, :, 0]
    x = np.zeros((rows, n))
    np.put_along_axis(x, order, small, 1)
    return x


def _optimal(x: np.ndarray, slack: np.ndarray) -> np.ndarray:
    """Whether the duality gap is within what the rounding of M leaves undecided."""
    return _gap(x, slack) <= 1e-13 + 1e3 * _EPSILON * x.sum(1) ** 2


def _gap(x: np.ndarray, slack: np.ndarray) -> np.ndarray:
    """The duality gap, a bound on the squared error."""
    return np.abs((x * slack).sum(1)) + np.maximum(-slack.min(1, initial=0.0), 0.0) * x.sum(1)


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
    values, vectors = _Matrix(matrix).eigen
    return np.sqrt(values)[:, None] * vectors.T
