"""The three blocks of robust multi-task boosting, and what they give for a row of a task."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.special import expit, logit

from polytask.boosting.losses import Loss
from polytask.boosting.trees import Growth, Tree, grow
from polytask.core.noise import Noise


@dataclass(frozen=True)
class Ensemble:
    """Attributes:
    constant: [K], where scores start.
    shared: of all tasks.
    outliers, others: trees that task t takes with weights `weights[t]` and 1 - `weights[t]`.
    own: a task's.
    """

    constant: np.ndarray
    learning_rate: float
    shared: list[Tree]
    outliers: list[Tree]
    others: list[Tree]
    weights: np.ndarray
    own: list[list[Tree]]

    def stages(self, rows: np.ndarray, tasks: np.ndarray) -> Iterator[np.ndarray]:
        """Scores [n, K] with 0, 1, ... of each task's own trees.

        Args: rows: float32 [n, d]; tasks: [n], the number of each row's task.
        """
        weight = self.weights[tasks][:, None]
        raw = self.constant + self._sum(self.shared, rows)
        raw = raw + weight * self._sum(self.outliers, rows) + (1 - weight) * self._sum(self.others, rows)
        yield raw
        members = [np.flatnonzero(tasks == task) for task in range(len(self.own))]
        for number in range(len(self.own[0])):
            raw = raw.copy()
            for trees, mine in zip(self.own, members, strict=True):
                if len(mine):
                    raw[mine] += self.learning_rate * trees[number](rows[mine])
            yield raw

    def _sum(self, trees: list[Tree], rows: np.ndarray) -> np.ndarray:
        total = np.zeros((len(rows), len(self.constant)))
        for tree in trees:
            total += self.learning_rate * tree(rows)
        return total


@dataclass(frozen=True)
class Settings:
    """How an ensemble is grown: the arguments of the estimators in `robust`."""

    shared_trees: int
    partition_trees: int
    task_trees: int
    learning_rate: float
    growth: Growth
    start: float
    weight_rate: float
    penalty: float


@dataclass(frozen=True)
class _Data:
    """What every block reads: rows [n, d], y [n, K], the number of each row's task [n]."""

    rows: np.ndarray
    y: np.ndarray
    tasks: np.ndarray


def fit_ensemble(
    rows: np.ndarray, y: np.ndarray, tasks: np.ndarray, loss: Loss, settings: Settings, noise: Noise
) -> Ensemble:
    """The blocks, one after the other."""
    constant = loss.constant(y)
    raw = np.tile(constant, (len(y), 1))
    data = _Data(rows, y, tasks)
    shared = _boost(data, raw, loss, settings.shared_trees, settings, noise.child("shared"))
    outliers, others, weights = _partition(data, raw, loss, settings, noise.child("partition"))
    own = []
    for task in range(int(tasks.max()) + 1):
        mine = np.flatnonzero(tasks == task)
        part = _Data(rows[mine], y[mine], tasks[mine])
        own.append(_boost(part, raw[mine], loss, settings.task_trees, settings, noise.child("own", task)))
    return Ensemble(constant, settings.learning_rate, shared, outliers, others, weights, own)


def _boost(data: _Data, raw: np.ndarray, loss: Loss, trees: int, settings: Settings, noise: Noise) -> list[Tree]:
    """Trees on all of the data; adds what they give to `raw`."""
    grown = []
    for number in range(trees):
        target, curvature = loss.derivatives(data.y, raw)
        grown.append(grow(data.rows, target, curvature, settings.growth, noise.child(number)))
        raw += settings.learning_rate * grown[-1](data.rows)
    return grown


def _partition(
    data: _Data, raw: np.ndarray, loss: Loss, settings: Settings, noise: Noise
) -> tuple[list[Tree], list[Tree], np.ndarray]:
    """(the outliers' trees, the others', the weight of the first by task); adds what they give to `raw`."""
    counts = np.bincount(data.tasks)
    first = logit(settings.start)
    theta = np.full(len(counts), first)
    banks: tuple[list[Tree], list[Tree]] = ([], [])
    sums = (np.zeros_like(raw), np.zeros_like(raw))
    for number in range(settings.partition_trees):
        weight = expit(theta)[data.tasks][:, None]
        shares = (weight, 1 - weight)
        slope, curvature = loss.derivatives(data.y, raw + shares[0] * sums[0] + shares[1] * sums[1])
        for bank, total, share, name in zip(banks, sums, shares, ("outliers", "others"), strict=True):
            bank.append(grow(data.rows, share * slope, curvature, settings.growth, noise.child(name, number)))
            total += settings.learning_rate * bank[-1](data.rows)
        slope, _ = loss.derivatives(data.y, raw + shares[0] * sums[0] + shares[1] * sums[1])
        by_row = (slope * (sums[0] - sums[1]) * shares[0] * shares[1]).sum(1)
        down = np.bincount(data.tasks, weights=by_row, minlength=len(counts)) / counts
        theta = theta + settings.weight_rate * (down - settings.penalty * (theta - first))
    weights = expit(theta)
    weight = weights[data.tasks][:, None]
    raw += weight * sums[0] + (1 - weight) * sums[1]
    leans_to_first = weights > (weights.min() + weights.max()) / 2
    if leans_to_first.mean() > 0.5:  # most tasks do: they are no outliers
        return banks[1], banks[0], 1 - weights
    return banks[0], banks[1], weights
