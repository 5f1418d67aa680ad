"""The streaming driver: reads models piece by piece, merges, writes. A setting bounds memory, not the model."""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from polytask.core.blocks import BLOCK
from polytask.core.errors import BadValue
from polytask.merging import forks
from polytask.merging.contract import Pipeline
from polytask.merging.fingerprint import fingerprint_of
from polytask.merging.forks import Forks
from polytask.merging.jobs import TensorJob
from polytask.merging.layout import index_bytes, shards_of
from polytask.merging.outcome import MergeReport, TensorReport
from polytask.merging.passes import Piece, independent
from polytask.merging.pool import Budget, Threads, one_thread_each, processors
from polytask.merging.reading import rows_of
from polytask.merging.stages import sees_whole, stages_of
from polytask.merging.streaming import Run, Tally, Work, held_whole, merge_together, take_over
from polytask.merging.weights.safetensors import INDEX
from polytask.merging.writer import Output, Workspace

_COPIES = 5  # of a block's rows in float32 that a pipeline holds at a time, about
_PROCESS = 24 * 2**20  # bytes that a process comes to hold of its own besides: what it writes to of its parent's pages
MEMORY = 300 * 2**20
SHARD = 5 * 10**9
WORTH_FORKING = 1 << 24  # elements; with fewer a merge is over sooner than processes have begun to pay

Files = Callable[[MergeReport, Path], Mapping[str, bytes | Path]]


def merge(
    jobs: Sequence[TensorJob],
    out: Path,
    *,
    seed: int = 0,
    memory: int = MEMORY,
    workers: int | None = None,
    shard_size: int = SHARD,
    metadata: Mapping[str, str] | None = None,
    files: Files | None = None,
    measure: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> MergeReport:
    """Writes the merged model into the directory `out`: model.safetensors, or shards with their index.

    The same call after an interruption redoes the unfinished shards only; the bytes are those of an uninterrupted run.
    They do not depend on `memory`, `workers` or the order of a job's inputs' files.

    Args:
        jobs: a tensor each, in the order of the output.
        out: a directory that takes its name when it is complete; one that was there is replaced.
        seed: of random transforms and rules.
        memory: anonymous bytes beyond the interpreter's; a rule on matrices needs its largest matrix besides.
        workers: processes, or threads where there is little to do or rules see whole matrices; default: the processors
            that this process may use.
        shard_size: most bytes of tensors in a file (one tensor may exceed it).
        metadata: of the safetensors files, beside {"format": "pt"}.
        files: given the report and the folder in which the weights' files lie so far, what else belongs in the
            directory: name -> content, or a file to copy.
        measure: whether norms, cosines and sign conflicts are measured.
        progress: called with (elements done, elements in all), from any thread; what is read twice counts twice.

    Raises:
        NotFinite: NaN or infinity in an input, naming file, tensor and index.
        CheckpointError: a full disk (before anything is written where that can be known), or another failed write.
    """
    start = time.perf_counter()
    _check(jobs, workers, shard_size)
    shards = shards_of(jobs, shard_size, {"format": "pt", **(metadata or {})})
    with Workspace(out, fingerprint_of(shards, seed, measure)) as workspace:
        output = Output(workspace, shards)
        number = _affordable(jobs, workers or processors(), memory)
        tally = Tally(progress, number)
        try:
            with output, _pool(jobs, number, tally) as pool, one_thread_each():
                run = Run(output, pool, Budget(memory + _largest(jobs)), tally, measure)
                for report in pool.each(_calls(run, jobs, seed)):
                    output.done(report)
                tally.finish()
        except BaseException:
            workspace.forget_if_empty()
            raise
        report = MergeReport(
            tensors=output.reports(jobs),
            files=[shard.file for shard in shards],
            bytes_read=tally.bytes_read,
            bytes_written=sum(shard.bytes for shard in output.todo),
            seconds=time.perf_counter() - start,
            shards_kept=len(output.kept),
        )
        index = {INDEX: index_bytes(shards)} if len(shards) > 1 else {}
        workspace.complete({**index, **(files(report, workspace.path) if files else {})})
    return report


def _affordable(jobs: Sequence[TensorJob], workers: int, memory: int) -> int:
    """As many workers as the memory holds the blocks of; no result depends on their number."""
    rows = 2 + max(len(job.inputs) for job in jobs)
    each = _COPIES * 4 * BLOCK * rows + (_PROCESS if _forks(jobs) else 0)
    return max(1, min(workers, memory // each))


def _forks(jobs: Sequence[TensorJob]) -> bool:
    """Whether processes pay: much to do, block by block. Whole matrices share one budget, so threads see to them."""
    elements = sum(job.elements for job in jobs)
    whole = any(isinstance(job.pipeline, Pipeline) and sees_whole(job.pipeline) for job in jobs)
    return forks.AVAILABLE and elements >= WORTH_FORKING and not whole


def _pool(jobs: Sequence[TensorJob], workers: int, tally: Tally) -> Threads | Forks:
    if workers > 1 and _forks(jobs):
        return Forks(workers, tally.become, tally.say)
    return Threads(workers)


def _largest(jobs: Sequence[TensorJob]) -> int:
    """Bytes of the largest tensor that a rule sees whole, which come on top of the memory that blocks may take."""
    whole = [job for job in jobs if isinstance(job.pipeline, Pipeline) and sees_whole(job.pipeline)]
    return max((held_whole(job) for job in whole), default=0)


def _calls(run: Run, jobs: Sequence[TensorJob], seed: int) -> list[tuple[int, Callable[[], Iterator[TensorReport]]]]:
    """Long calls that do not depend on one another, and how many elements each is of.

    Tensors that share statistics are one call, and so is each tensor that is taken over.
    """
    works = {job.name: _work(run, job, seed) for job in jobs if isinstance(job.pipeline, Pipeline)}
    calls: list[tuple[int, Callable[[], Iterator[TensorReport]]]] = []
    for pieces in independent([work.piece for work in works.values()]):
        together = [works[piece.name] for piece in pieces]
        if any(run.output.wants(work.job) for work in together):
            run.tally.expect(together)
            calls.append((sum(work.job.elements for work in together), partial(merge_together, run, together)))
    for job in jobs:
        if not isinstance(job.pipeline, Pipeline) and run.output.wants(job):
            run.tally.expect([job])
            calls.append((job.elements, partial(take_over, run, job)))
    return calls


def _work(run: Run, job: TensorJob, seed: int) -> Work:
    assert isinstance(job.pipeline, Pipeline)
    rows = rows_of(job, run.tally.read)
    stages = stages_of(job.pipeline, rows.tasks, job.shape, seed=seed, name=job.name, depth=job.depth)
    return Work(job, rows, Piece(job.name, job.shape, rows.tasks, stages, rows.read, job.group))


def _check(jobs: Sequence[TensorJob], workers: int | None, shard_size: int) -> None:
    """What would otherwise show late, or never."""
    if not jobs:
        raise BadValue("the number of tensors to merge", 0, "at least 1")
    name, times = Counter(job.name for job in jobs).most_common(1)[0]
    if times > 1:
        raise BadValue(f"the number of jobs for the tensor {name!r}", times, "1")
    if workers is not None and workers < 1:
        raise BadValue("workers", workers, "a whole number of at least 1")
    if shard_size < 1:
        raise BadValue("shard_size", shard_size, "a number of bytes, at least 1")
    tasks = list(dict.fromkeys(task for job in jobs for task in job.inputs))
    for job in jobs:
        if not job.inputs and job.base is None:
            raise BadValue(f"the sources of the tensor {job.name!r}", "none", "at least one")
        sources = [*job.inputs.values(), *([job.base] if job.base else [])]
        for source in sources:
            found = source.weights.shape(source.name)
            if found != job.shape:
                where = source.weights.where(source.name)
                raise BadValue(f"the shape of {source.name!r}", found, f"{job.shape}, as in the output", where)
        if isinstance(job.pipeline, Pipeline):
            job.pipeline.check_tasks(tasks)
            job.pipeline.check_number(len(job.inputs), base=job.base is not None)
