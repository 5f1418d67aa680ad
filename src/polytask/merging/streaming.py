"""From a job to its bytes: what is measured first, then block after block read, combined, rounded and written."""

import mmap
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from polytask.core.blocks import bounds
from polytask.core.errors import NotFinite
from polytask.merging.contract import Pipeline
from polytask.merging.interference import SIGNS, Sums
from polytask.merging.jobs import TensorJob
from polytask.merging.outcome import TensorReport
from polytask.merging.passes import SPAN, Execute, Piece, assembled, measure
from polytask.merging.pool import Budget
from polytask.merging.reading import Rows, taken
from polytask.merging.stages import GramWeights
from polytask.merging.writer import Output


class Tally:
    """How far the merge is: elements that have passed, of those that will; and how much was read.

    Args:
        progress: called with (elements done, elements in all) at every two-hundredth part.
        workers: processes that may count, each in a row of its own of memory that all share.
    """

    def __init__(self, progress: Callable[[int, int], None] | None, workers: int = 1) -> None:
        self._progress = progress
        self._expected = self._said = self._worker = 0
        self._passed = np.frombuffer(mmap.mmap(-1, 16 * workers), dtype=np.int64).reshape(workers, 2)
        self._lock = threading.Lock()

    @property
    def bytes_read(self) -> int:
        return int(self._passed[:, 1].sum())

    def become(self, worker: int) -> None:
        """This is the process of that number from here on, which counts and leaves it to its parent to say."""
        self._worker, self._progress = worker, None

    def expect(self, works: "Sequence[Work | TensorJob]") -> None:
        """These will pass: once for each statistic's two passes (a rare third is not counted), once to be written."""
        for work in works:
            stages = work.piece.stages if isinstance(work, Work) else []
            passes = 1 + sum(2 if stage.statistic else 0 for stage in stages)
            self._expected += passes * (work.job if isinstance(work, Work) else work).elements

    def read(self, elements: int, size: int) -> None:
        """A block has been read."""
        with self._lock:
            self._passed[self._worker] += (elements, size)
        self.say()

    def say(self) -> None:
        """Tells how far it is, where that is much farther than was told."""
        if self._progress is None:
            return
        with self._lock:
            done = min(int(self._passed[:, 0].sum()), self._expected)
            if (done - self._said) * 200 >= self._expected:
                self._said = done
                self._progress(done, self._expected)

    def finish(self) -> None:
        """All has been written, in fewer passes than expected perhaps."""
        if self._progress and self._said < self._expected:
            self._progress(self._expected, self._expected)


@dataclass(frozen=True)
class Work:
    """A job that is merged, its rows and its way through the stages."""

    job: TensorJob
    rows: Rows
    piece: Piece


@runtime_checkable
class Pool(Protocol):
    """What carries out calls: `Threads` or `Forks`."""

    workers: int

    @property
    def execute(self) -> Execute:
        """Short calls' results in order."""
        ...

    def each(self, calls: Sequence[tuple[int, Callable[[], Iterator[Any]]]]) -> Iterator[Any]:
        """What long calls (size, call) give, which may use `execute`."""
        ...


@dataclass(frozen=True)
class Run:
    """What the calls of one merge share."""

    output: Output
    pool: Pool
    budget: Budget
    tally: Tally
    measure: bool


def merge_together(run: Run, works: Sequence[Work]) -> Iterator[TensorReport]:
    """Tensors that share statistics: measures these, then writes what is still to be written, tensor by tensor."""
    measure([work.piece for work in works], run.pool.execute)
    wanted = [work for work in works if run.output.wants(work.job)]
    parts = run.pool.execute(call for work in wanted for call in _parts(run, work))
    for work in wanted:
        total: Sums | None = None
        for _ in _parts(run, work):
            part = next(parts)
            total = part if total is None else total.add(part)
        weights = _weights(work.piece)
        yield _report(work, total, weights)
    for work in works:
        work.piece.measured.clear()  # which may hold much


def take_over(run: Run, job: TensorJob) -> Iterator[TensorReport]:
    """A tensor that is not merged."""

    def copy(start: int, stop: int) -> None:
        run.output.write(job, start, rounded(taken(job, start, stop), job, start))
        run.tally.read(stop - start, (stop - start) * job.dtype.itemsize)

    cuts = bounds(job.shape)
    spans = [(cuts[first][0], cuts[min(first + SPAN, len(cuts)) - 1][1]) for first in range(0, len(cuts), SPAN)]
    for _ in run.pool.execute(partial(copy, start, stop) for start, stop in spans):
        pass
    yield TensorReport(job.name, job.group, list(job.inputs), job.elements, taken=True)


def rounded(values: Tensor, job: TensorJob, start: int) -> Tensor:
    """The values in the output's type.

    Raises: NotFinite for a value that its range does not hold.
    """
    if values.dtype == job.dtype:
        return values
    if not job.dtype.is_floating_point and values.dtype.is_floating_point:
        values = values.round()
    found = values.to(job.dtype)
    if job.dtype in _NARROW and not bool(found.float().sum().isfinite()):
        bad = ~found.float().isfinite()
        if bool(bad.any()):
            index = int(bad.int().argmax())
            message = f"tensor {job.name!r}: {float(values[index]):g} at index {start + index} is beyond {job.dtype}"
            raise NotFinite(f"{message}; choose a wider output type")
    return found


_NARROW = (torch.float16, torch.float8_e4m3fn, torch.float8_e5m2)


def _parts(run: Run, work: Work) -> list[Callable[[], Sums | None]]:
    """The calls that write a tensor, in order: one for each span, or one for all where the rule sees it whole."""
    if work.piece.stages[-1].whole:
        return [partial(_write_whole, run, work)]
    return [partial(_write_span, run, work, span) for span in work.piece.spans()]


def _write_span(run: Run, work: Work, span: range) -> Sums | None:
    piece, total = work.piece, None
    for block in span:
        start, stop = piece.cuts[block]
        values, base = piece.read(start, stop, not piece.checked)
        seen = Sums.of_rows(values, base, block) if run.measure else None  # first: the stages may overwrite the rows
        last = len(piece.stages) - 1
        values = piece.through(values, base, block, 0, last)
        if seen is not None and last:
            seen.see_kept(values, block)
        combined = _masked(work.job, start, piece.through(values, base, block, last, last + 1))
        _write(run, work, start, combined, base)
        if seen is not None:
            seen.merged = combined.dot(combined).item()
            total = seen if total is None else total.add(seen)
    return total


def held_whole(job: TensorJob) -> int:
    """Bytes of a tensor's rows in float32, and of two more, which a rule may need to combine them."""
    return 4 * job.elements * (len(job.inputs) + 2)


def _write_whole(run: Run, work: Work) -> Sums | None:
    piece, total = work.piece, None
    with run.budget.of(held_whole(work.job)):
        values, base = assembled(piece)
        last = len(piece.stages) - 1
        # Looked at first: the rule may overwrite what it is given.
        looked_at = enumerate(piece.cuts) if run.measure and last else ()
        kept = {block: values[:, start:stop] != 0 for block, (start, stop) in looked_at if block % SIGNS == 0}
        combined = piece.through(values, base, 0, last, last + 1)
        del values
        for block, (start, stop) in enumerate(piece.cuts):
            rows, below = piece.read(start, stop, False)
            part = _masked(work.job, start, combined[start:stop])
            _write(run, work, start, part, below)
            if run.measure:
                seen = Sums.of_rows(rows, below, block)
                if block in kept:
                    seen.see_kept(kept[block], block)
                seen.merged = part.dot(part).item()
                total = seen if total is None else total.add(seen)
    return total


def _masked(job: TensorJob, start: int, combined: Tensor) -> Tensor:
    """What the rule gave, times the plan's mask."""
    if job.mask is None:
        return combined
    return combined * job.mask.weights.read(job.mask.name, start, start + len(combined))


def _write(run: Run, work: Work, start: int, combined: Tensor, base: Tensor | None) -> None:
    """base + scale * combined, rounded once."""
    assert isinstance(work.job.pipeline, Pipeline)
    scale = work.job.pipeline.scale
    if work.rows.subtracts:
        assert base is not None
        merged = torch.add(base, combined, alpha=scale)
    else:
        merged = combined if scale == 1 else combined * scale
    run.output.write(work.job, start, rounded(merged, work.job, start))


def _weights(piece: Piece) -> dict[str, float]:
    last = len(piece.stages) - 1
    if not isinstance(piece.stages[last].statistic, GramWeights):
        return {}
    return dict(zip(piece.tasks, piece.measured[last][0].tolist(), strict=True))


def _report(work: Work, total: Sums | None, weights: dict[str, float]) -> TensorReport:
    job, tasks = work.job, list(work.piece.tasks)
    if total is None:
        return TensorReport(job.name, job.group, tasks, job.elements, weights=weights)
    return total.report(job, tasks, weights)
