"""How much the tasks interfere in a tensor: lengths, angles and signs, measured while the blocks pass by."""

from dataclasses import dataclass

from torch import Tensor

from polytask.core import geometry
from polytask.merging.jobs import TensorJob
from polytask.merging.outcome import TensorReport

SIGNS = 16  # signs and masks are compared in one block of so many, the first of a tensor always
_LOW, _HIGH = 1e-20, 1e30


@dataclass
class Sums:
    """What is added up over the blocks of one tensor, float64."""

    gram: Tensor
    agreement: Tensor | None  # elements with equal signs minus elements with opposite ones, for each pair
    both: Tensor | None  # elements where both are not zero
    base: float
    merged: float = 0.0
    kept: Tensor | None = None  # elements that both tasks' transforms keep, for each pair; None without transforms
    masked: int = 0  # elements among which these are

    @classmethod
    def of_rows(cls, rows: Tensor, base: Tensor | None, block: int) -> "Sums":
        """Of one block: rows [T, n], the base's values [n], and the block's number in the tensor."""
        agreement = both = None
        if block % SIGNS == 0:
            signs = rows.sign()
            agreement = (signs @ signs.T).double()
            present = signs.abs_()
            both = (present @ present.T).double()
        return cls(_gram(rows), agreement, both, 0.0 if base is None else float(base @ base))

    def see_kept(self, rows: Tensor, block: int) -> None:
        """Of the same block after the transforms: [T, n], where an element that was left out is 0 or False."""
        if block % SIGNS == 0:
            present = (rows != 0).float()
            self.kept, self.masked = (present @ present.T).double(), rows.shape[1]

    def add(self, other: "Sums") -> "Sums":
        if other.kept is not None:
            self.kept = other.kept if self.kept is None else self.kept.add_(other.kept)
            self.masked += other.masked
        self.gram += other.gram
        if other.agreement is not None and other.both is not None:
            self.agreement = other.agreement if self.agreement is None else self.agreement.add_(other.agreement)
            self.both = other.both if self.both is None else self.both.add_(other.both)
        self.merged += other.merged
        self.base += other.base
        return self

    def report(self, job: TensorJob, tasks: list[str], weights: dict[str, float]) -> TensorReport:
        assert self.agreement is not None  # the first block's
        assert self.both is not None
        conflicts = (self.both - self.agreement) / (2 * self.both)  # NaN where no element counts
        return TensorReport(
            name=job.name,
            group=job.group,
            tasks=tasks,
            elements=job.elements,
            norms=self.gram.diagonal().clamp(min=0).sqrt().tolist(),
            cosines=_known(geometry.cosines(self.gram)),
            conflicts=_known(conflicts),
            merged_norm=self.merged**0.5,
            base_norm=self.base**0.5 if job.base else None,
            weights=weights,
            kept=[] if self.kept is None else (self.kept / self.masked).tolist(),
        )


def _gram(rows: Tensor) -> Tensor:
    """geometry.gram, without its care for numbers near the ends of float32's range where there are none."""
    products = rows @ rows.T
    if all(_LOW < square < _HIGH for square in products.diagonal().tolist()):
        return products.double()
    return geometry.gram(rows)


def _known(matrix: Tensor) -> list[list[float | None]]:
    return [[None if value != value else value for value in row] for row in matrix.tolist()]
