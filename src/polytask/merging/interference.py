"""How much the tasks interfere in a tensor: lengths, angles and signs, measured while the blocks pass by."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from polytask.core import geometry
from polytask.merging.jobs import TensorJob
from polytask.merging.outcome import TensorReport

SIGNS = 16  # signs and masks are compared in one block of so many, the first of a tensor always
_LOW, _HIGH = 1e-20, 1e30


@dataclass
class Sums:
    """What is added up over the blocks of one tensor, float64.

    In NumPy, which adds a few numbers without handing over Python's lock.
    """

    gram: np.ndarray
    agreement: np.ndarray | None  # elements with equal signs minus elements with opposite ones, for each pair
    both: np.ndarray | None  # elements where both are not zero
    base: float
    merged: float = 0.0
    kept: np.ndarray | None = None  # elements that both tasks' transforms keep, for each pair; None without transforms
    masked: int = 0  # elements among which these are

    @classmethod
    def of_rows(cls, rows: Tensor, base: Tensor | None, block: int) -> "Sums":
        """Of one block: rows [T, n], the base's values [n], and the block's number in the tensor."""
        agreement = both = None
        if block % SIGNS == 0:
            signs = rows.sign()
            agreement = _counts(signs)
            both = _counts(signs.abs_())
        return cls(_gram(rows), agreement, both, 0.0 if base is None else base.dot(base).item())

    def see_kept(self, rows: Tensor, block: int) -> None:
        """Of the same block after the transforms: [T, n], where an element that was left out is 0 or False."""
        if block % SIGNS == 0:
            self.kept, self.masked = _counts((rows != 0).float()), rows.shape[1]

    def add(self, other: "Sums") -> "Sums":
        if other.kept is not None:
            self.kept = other.kept if self.kept is None else self.kept + other.kept
            self.masked += other.masked
        self.gram += other.gram
        if other.agreement is not None and other.both is not None:
            self.agreement = other.agreement if self.agreement is None else self.agreement + other.agreement
            self.both = other.both if self.both is None else self.both + other.both
        self.merged += other.merged
        self.base += other.base
        return self

    def report(self, job: TensorJob, tasks: list[str], weights: dict[str, float]) -> TensorReport:
        assert self.agreement is not None  # the first block's
        assert self.both is not None
        with np.errstate(invalid="ignore"):  # NaN where no element counts
            conflicts = (self.both - self.agreement) / (2 * self.both)
            kept = [] if self.kept is None else (self.kept / self.masked).tolist()
        return TensorReport(
            name=job.name,
            group=job.group,
            tasks=tasks,
            elements=job.elements,
            norms=np.sqrt(self.gram.diagonal().clip(min=0)).tolist(),
            cosines=_known(geometry.cosines(torch.from_numpy(self.gram)).numpy()),
            conflicts=_known(conflicts),
            merged_norm=self.merged**0.5,
            base_norm=self.base**0.5 if job.base else None,
            weights=weights,
            kept=kept,
        )


def _gram(rows: Tensor) -> np.ndarray:
    """geometry.gram, without its care for numbers near the ends of float32's range where there are none."""
    products = (rows @ rows.T).numpy().astype(np.float64)
    if all(_LOW < square < _HIGH for square in products.diagonal().tolist()):
        return products
    return geometry.gram(rows).numpy()


def _counts(rows: Tensor) -> np.ndarray:
    """Of a block's ones, or ones and minus ones: their inner products, which float32 holds exactly."""
    return (rows @ rows.T).numpy().astype(np.float64)


def _known(matrix: np.ndarray) -> list[list[float | None]]:
    return [[None if value != value else value for value in row] for row in matrix.tolist()]
