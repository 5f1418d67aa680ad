"""Interval clusters: an ordered family of tasks is cut into intervals whose tasks are alike, exactly.

Source      Go, Kim, Lee et al. 2023, "Addressing negative transfer in diffusion models", arXiv:2306.00354, interval
            clustering: intervals I_1 ... I_k of the order that minimise the sum of their costs, by dynamic programming.
            The cost of an interval is the sum over its tasks of the distance to its middle task: in index, in the
            logarithm of the signal-to-noise ratio, or minus the affinity of the two tasks (the mean cosine of their
            gradients).
Departures  we read the problem as its authors state it, and what the costs are elsewhere: the distance is taken as the
            absolute one, and of an even number of tasks the earlier of the two in the middle as the middle one. Any
            order may be given, and any numbers as the index.
Cost        O(k n^2) for n tasks, once; n^2 numbers of memory.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from polytask.core.constraints import Choice, Interval
from polytask.core.errors import BadValue, MissingInput, UnknownName

KINDS = Choice("index", "signal_to_noise", "affinity")


def interval_clusters(tasks: Sequence[str], *, kind: str, number: int, values: Any = None) -> dict[str, list[str]]:
    """{"first..last": the tasks of an interval}, in order.

    Args:
        tasks: in their order; by "index" the order of their values.
        kind: what makes tasks alike: "index", "signal_to_noise" or "affinity".
        number: of clusters, at most that of tasks.
        values: "index": {task: number}, by default its place in the order; "signal_to_noise": {task: ratio above 0};
            "affinity": [T, T], rows and columns in the order of the tasks.

    >>> interval_clusters(["a", "b", "c", "d"], kind="index", number=2, values={"a": 0, "b": 1, "c": 8, "d": 9})
    {'a..b': ['a', 'b'], 'c..d': ['c', 'd']}
    """
    where = "clusters"
    if not KINDS.allows(kind):
        raise BadValue("kind", kind, str(KINDS), where)
    if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number <= len(tasks):
        raise BadValue("number", number, f"a whole number from 1 to that of the tasks, {len(tasks)}", where)
    if kind == "index" and values is not None:
        index = _numbers(values, tasks, where)
        tasks = [tasks[place] for place in np.argsort(index, kind="stable")]
    distances = _distances(kind, tasks, values, where)
    clusters = [list(tasks[first : last + 1]) for first, last in best_intervals(distances, number)]
    return {members[0] if len(members) == 1 else f"{members[0]}..{members[-1]}": members for members in clusters}


def best_intervals(distances: Float[np.ndarray, "n n"], number: int) -> list[tuple[int, int]]:
    """(first, last) of the `number` intervals of 0 ... n - 1 that minimise the sum of their costs, the sum over an
    interval's members of the distance from its middle one."""
    n = len(distances)
    cost = interval_costs(distances)
    best = cost[0].copy()  # of 0 ... last in one interval
    begins = np.zeros((number, n), dtype=np.int64)
    for clusters in range(1, number):
        before = np.concatenate([[np.inf], best[:-1]])  # of what lies before each beginning
        total = before[:, None] + cost
        begins[clusters] = total.argmin(0)
        best = total.min(0)
    intervals, last = [], n - 1
    for clusters in range(number - 1, -1, -1):
        first = int(begins[clusters, last])
        intervals.append((first, last))
        last = first - 1
    return intervals[::-1]


def interval_costs(distances: Float[np.ndarray, "n n"]) -> Float[np.ndarray, "n n"]:
    """The cost of first ... last at [first, last]; inf where first is beyond last."""
    n = len(distances)
    sums = np.concatenate([np.zeros((n, 1)), distances.cumsum(1)], axis=1)
    first, last = np.indices((n, n))
    middle = (first + last) // 2
    cost = sums[middle, last + 1] - sums[middle, first]
    return np.where(first <= last, cost, np.inf)


def _distances(kind: str, tasks: Sequence[str], values: Any, where: str) -> Float[np.ndarray, "n n"]:
    if kind == "affinity":
        return -_matrix(values, len(tasks), where)
    if kind == "index":
        points = np.arange(len(tasks), dtype=np.float64) if values is None else _numbers(values, tasks, where)
    else:
        points = np.log(_numbers(values, tasks, where, Interval(0, open="left")))
    return np.abs(points[:, None] - points)


def _numbers(values: Any, tasks: Sequence[str], where: str, allowed: Interval | None = None) -> Float[np.ndarray, "n"]:
    """values[task] for each task; an error for one that is missing or not allowed."""
    allowed = Interval() if allowed is None else allowed
    if not isinstance(values, Mapping):
        raise BadValue("values", values, "{task: number}", where)
    for task in values:
        if task not in tasks:
            raise UnknownName("task", task, tasks, f"{where}, values")
    for task in tasks:
        if task not in values:
            raise MissingInput(f"{where}: values has no number for task {task!r}")
        if not allowed.allows(values[task]):
            raise BadValue(f"the value of task {task!r}", values[task], str(allowed), where)
    return np.array([values[task] for task in tasks], dtype=np.float64)


def _matrix(values: Any, n: int, where: str) -> Float[np.ndarray, "n n"]:
    try:
        matrix = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        matrix = np.zeros(0)
    if matrix.shape != (n, n) or not np.isfinite(matrix).all():
        raise BadValue("values", f"of shape {list(matrix.shape)}", f"[{n}, {n}] finite affinities of the tasks", where)
    return matrix
