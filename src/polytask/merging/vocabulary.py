"""Tensors that differ in the number of their rows alone: vocabularies of different size."""

from collections.abc import Sequence
from dataclasses import replace

from polytask.core.errors import Inconsistent
from polytask.merging.inputs import Candidate
from polytask.merging.jobs import Source
from polytask.merging.weights.rows import RowsWeights


def of_one_size(candidate: Candidate, treatment: str) -> tuple[Candidate, str]:
    """The candidate with sources of one shape, and a line on what was done ("" where nothing was).

    Args:
        candidate: its sources may differ in their first axis.
        treatment: error, base (the base's rows, else the first task's) or largest (rows that an input lacks are the
            base's, else those of the largest).

    Raises:
        Inconsistent: the rows differ and the treatment is error, or cannot give the rows asked for.
    """
    every = candidate.every
    shapes = [source.weights.shape(source.name) for _, source in every]
    if len(set(shapes)) == 1 or any(not shape or shape[1:] != shapes[0][1:] for shape in shapes):
        return candidate, ""
    if treatment == "error":
        raise Inconsistent(
            f"plan: {candidate.name!r} has {_counts(every)}; say what to do, vocabulary: base or largest, "
            "or use models of one vocabulary"
        )
    rows = {owner: source.weights.shape(source.name)[0] for owner, source in every}
    wanted = next(iter(rows.values())) if treatment == "base" else max(rows.values())
    if treatment == "base" and min(rows.values()) < wanted:
        raise Inconsistent(
            f"plan: vocabulary: base: {candidate.name!r} has {_counts(every)}, so some lack rows that the base has"
        )
    largest = next(source for owner, source in every if rows[owner] == max(rows.values()))
    base = None if candidate.base is None else _resized(candidate.base, wanted, (largest,))
    fillers = (*((candidate.base,) if candidate.base is not None else ()), largest)
    sources = {task: _resized(source, wanted, fillers) for task, source in candidate.sources.items()}
    return replace(candidate, base=base, sources=sources), f"vocabulary: {treatment}, {wanted} rows"


def _resized(source: Source, rows: int, fillers: Sequence[Source]) -> Source:
    if source.weights.shape(source.name)[0] == rows:
        return source
    parts = [(source.weights, source.name), *((filler.weights, filler.name) for filler in fillers)]
    return Source(RowsWeights(parts, rows), source.name)


def _counts(every: Sequence[tuple[str, Source]]) -> str:
    return ", ".join(f"{source.weights.shape(source.name)[0]} rows in {owner}" for owner, source in every)
