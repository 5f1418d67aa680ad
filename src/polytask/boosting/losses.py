"""What boosting descends: losses with the constant that minimises them, slopes and curvatures, one row at a time."""

from typing import Protocol

import numpy as np
from scipy.special import expit, softmax


class Loss(Protocol):
    """A loss of raw scores [n, K]; `y` is [n, K] too."""

    def constant(self, y: np.ndarray) -> np.ndarray:
        """The scores [K] that are best where all rows get the same."""
        ...

    def derivatives(self, y: np.ndarray, raw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """([n, K] minus the slope, [n, K] the curvature) of each row's loss."""
        ...


class SquaredError:
    """(y - raw)^2 / 2."""

    def constant(self, y: np.ndarray) -> np.ndarray:
        return y.mean(0)

    def derivatives(self, y: np.ndarray, raw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return y - raw, np.ones_like(y)


class LogLoss:
    """Of two classes with one score (y is 0 or 1), or of K with a score each (y is one-hot).

    For K classes the curvature is that of each score by itself, times K / (K - 1): Friedman 2001 ("Greedy function
    approximation"), algorithm 6.
    """

    def constant(self, y: np.ndarray) -> np.ndarray:
        share = y.mean(0)
        return np.log(share) if len(share) > 1 else np.log(share) - np.log1p(-share)

    def derivatives(self, y: np.ndarray, raw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        classes, share = y.shape[1], self.shares(raw)
        factor = classes / (classes - 1) if classes > 1 else 1.0
        return y - share, factor * share * (1 - share)

    @staticmethod
    def shares(raw: np.ndarray) -> np.ndarray:
        """The probability of each score's class."""
        return softmax(raw, axis=1) if raw.shape[1] > 1 else expit(raw)
