"""One regression tree of an ensemble: its splits from scikit-learn, its leaves from the loss."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from polytask.core.noise import Noise

_FLAT = 1e-150
"""A leaf whose rows have less curvature in all gives 0, as scikit-learn's does."""


@dataclass(frozen=True)
class Growth:
    """How trees are grown: the deepest leaf, the fewest rows of one."""

    max_depth: int
    min_samples_leaf: int


@dataclass(frozen=True)
class Tree:
    """Attributes:
    splits: a fitted DecisionTreeRegressor.
    values: [nodes, K], what a row in that node gets.
    """

    splits: Any
    values: np.ndarray

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """[n, K] for float32 rows."""
        return self.values[self.splits.apply(rows, check_input=False)]


def grow(rows: np.ndarray, target: np.ndarray, curvature: np.ndarray, growth: Growth, noise: Noise) -> Tree:
    """A tree with the splits that fit `target` best in least squares; a leaf gives sum(target) / sum(curvature).

    Args:
        rows: float32 [n, d]; target, curvature: [n, K].
        noise: decides between splits that are equally good.
    """
    from sklearn.tree import DecisionTreeRegressor

    splits = DecisionTreeRegressor(
        max_depth=growth.max_depth,
        min_samples_leaf=growth.min_samples_leaf,
        random_state=noise.torch_seed() % 2**32,
    )
    splits.fit(rows, target, check_input=False)
    leaves = splits.apply(rows, check_input=False)
    totals = [np.zeros((splits.tree_.node_count, target.shape[1])) for _ in range(2)]
    for total, values in zip(totals, (target, curvature), strict=True):
        np.add.at(total, leaves, values)
    over, under = totals
    return Tree(splits, np.divide(over, under, out=np.zeros_like(over), where=under > _FLAT))
