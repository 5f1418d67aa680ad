"""Means and standard deviations over chunks of rows."""

import numpy as np


class Moments:
    """Count, mean and variance of each column, NaN left out; chunks are merged as in Chan et al. 1979, in float64."""

    def __init__(self, width: int) -> None:
        self.count = np.zeros(width, dtype=np.int64)
        self.missing = np.zeros(width, dtype=np.int64)
        self.mean = np.zeros(width)
        self._squares = np.zeros(width)

    def add(self, values: np.ndarray) -> None:
        """values: float64 [N, width]."""
        with np.errstate(over="ignore"):  # numbers beyond 1e150 have no finite variance; features refuse that
            self._add(values)

    def _add(self, values: np.ndarray) -> None:
        known = ~np.isnan(values)
        count = known.sum(0)
        divisor = np.maximum(count, 1)
        mean = np.where(known, values, 0.0).sum(0) / divisor
        squares = np.where(known, (values - mean) ** 2, 0.0).sum(0)
        total = np.maximum(self.count + count, 1)
        shift = mean - self.mean
        self._squares += squares + shift**2 * self.count * count / total
        self.mean = self.mean + shift * count / total
        self.count = self.count + count
        self.missing = self.missing + len(values) - count

    @property
    def std(self) -> np.ndarray:
        """Population standard deviation; 1 where the values are constant (to rounding)."""
        std = np.sqrt(self._squares / np.maximum(self.count, 1))
        return np.where(std > 1e-12 * np.maximum(np.abs(self.mean), 1e-300), std, 1.0)
