"""A job's rows, block by block: what its sources hold, in float32, as deltas where the base is subtracted."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from polytask.core.errors import Inconsistent, MissingInput, NotFinite
from polytask.merging.contract import Pipeline
from polytask.merging.jobs import Source, Take, TensorJob
from polytask.merging.stages import BASE


@dataclass(frozen=True)
class Rows:
    """The rows of one tensor.

    Attributes:
        tasks: of the rows, in order.
        sources: of the rows.
        base: the base's tensor, if there is one.
        subtracts: whether the base is subtracted from the rows, and added to the result.
        say_read: told the elements and bytes of each block.
        masks: of the rows; None where a row has none.
    """

    tasks: list[str]
    sources: list[Source]
    base: Source | None
    subtracts: bool
    say_read: Callable[[int, int], None]
    masks: tuple[Source | None, ...] = ()

    def read(self, start: int, stop: int, check: bool) -> tuple[Tensor, Tensor | None]:
        """(float32 [T, n], the base's [n] in float32 or wider); NotFinite if asked to look and there is NaN."""
        stored = [source.weights.read(source.name, start, stop) for source in self.sources]
        below = None if self.base is None else self.base.weights.read(self.base.name, start, stop)
        self.say_read(stop - start, sum(values.nbytes for values in stored) + (0 if below is None else below.nbytes))
        rows = torch.empty(len(stored), stop - start)
        base = None if below is None else below.to(_working(below))
        subtracted = base if self.subtracts else None
        wide = subtracted is not None and torch.float64 in (subtracted.dtype, *(values.dtype for values in stored))
        for row, values in zip(rows.unbind(), stored, strict=True):
            row.copy_(values.double().sub_(subtracted) if wide else values)
        if subtracted is not None and not wide:
            rows -= subtracted
        for row, mask in zip(rows, self.masks, strict=False):
            if mask is not None:
                row *= mask.weights.read(mask.name, start, stop)
        flat = rows.view(-1)
        if check and not math.isfinite(flat.dot(flat).item()):
            self._refuse(stored, below, start)
        return rows, base

    def _refuse(self, stored: list[Tensor], below: Tensor | None, start: int) -> None:
        """NotFinite naming file, tensor and index, unless only the squares left the range."""
        sources = [*([self.base] if self.base else []), *self.sources]
        for source, values in zip(sources, [*([] if below is None else [below]), *stored], strict=True):
            bad = ~values.to(_working(values)).isfinite()
            if bool(bad.any()):
                index = int(bad.int().argmax())
                where = f"{source.weights.where(source.name)}: tensor {source.name!r}"
                raise NotFinite(f"{where} is {float(values[index])} at index {start + index} (of the flattened tensor)")


def _working(values: Tensor) -> torch.dtype:
    """The type of arithmetic: float32, but for what is stored in float64."""
    return torch.float64 if values.dtype == torch.float64 else torch.float32


def rows_of(job: TensorJob, say_read: Callable[[int, int], None]) -> Rows:
    """The rows that the job's rule wants to see.

    Raises: MissingInput where the rule is on deltas, or reads the base, and there is none.
    """
    assert isinstance(job.pipeline, Pipeline)
    of, base = job.pipeline.of, job.base
    tasks, sources = list(job.inputs), list(job.inputs.values())
    spec = job.pipeline.rule.spec
    if base is None and (of == "deltas" or "base" in getattr(spec, "needs", ())):
        raise MissingInput(f"tensor {job.name!r}: rule {spec.name!r} works on what fine-tuning changed; name a base")
    if of == "base and models" and base is not None:
        tasks, sources = [BASE, *tasks], [base, *sources]
    subtracts = of in ("deltas", "either") and base is not None
    if (job.masks or job.mask) and not subtracts:
        raise MissingInput(
            f"tensor {job.name!r}: a mask is of what fine-tuning changed; rule {spec.name!r} sees models"
        )
    return Rows(tasks, sources, base, subtracts, say_read, tuple(job.masks.get(task) for task in tasks))


def taken(job: TensorJob, start: int, stop: int) -> Tensor:
    """A block of a tensor that is taken over, in its own type.

    Raises: Inconsistent where all sources must be equal and are not.
    """
    assert isinstance(job.pipeline, Take)
    sources = {**({BASE: job.base} if job.base else {}), **job.inputs}
    (first, source), *others = sources.items()
    values = source.weights.read(source.name, start, stop)
    for name, other in others if job.pipeline.equal else []:
        found = other.weights.read(other.name, start, stop)
        differs = _as_stored(values) != _as_stored(found) if values.dtype == found.dtype else values != found
        if bool(differs.any()):
            index = int(differs.int().argmax())
            raise Inconsistent(
                f"tensor {job.name!r} is not merged and must be the same in every model, but at index {start + index} "
                f"{first!r} has {values[index].item()} and {name!r} has {found[index].item()}; "
                "say in the plan which one is taken"
            )
    return values


def _as_stored(values: Tensor) -> Tensor:
    """The bits, as integers: NaN is equal to itself."""
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return values.view(integers[values.dtype.itemsize])
