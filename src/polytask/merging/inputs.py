"""The models of a plan, opened, and which tensor of each becomes which tensor of the output."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from polytask.core.errors import BadValue, Inconsistent
from polytask.merging.jobs import Source
from polytask.merging.layers import OUTSIDE, first_fitting, place_of, renumbered, stacks
from polytask.merging.opening import Opened, open_model
from polytask.merging.plan import MergePlan, Slice
from polytask.merging.references import found_path
from polytask.merging.weights.interface import Weights
from polytask.merging.weights.safetensors import open_safetensors


@dataclass(frozen=True)
class Inputs:
    """The opened base and tasks, in the plan's order.

    Attributes:
        masks: of those tasks that have one.
        mask: of what the rule gives.
        values: tensors that are taken over.
    """

    base: Opened | None
    tasks: dict[str, Opened]
    masks: Mapping[str, Weights] = field(default_factory=dict)
    mask: Weights | None = None
    values: Weights | None = None

    @property
    def named(self) -> dict[str, Opened]:
        """With the base under its own name, first."""
        return {**({"base": self.base} if self.base is not None else {}), **self.tasks}

    def donor(self, plan: MergePlan) -> tuple[str, Opened]:
        """Whose config and tokenizer the output gets."""
        named = plan.tokenizer.source if plan.tokenizer is not None and plan.tokenizer.source in self.named else None
        name = plan.donor or named or next(iter(self.named))
        return name, self.named[name]

    def close(self) -> None:
        beside = [weights for weights in (*self.masks.values(), self.mask, self.values) if weights is not None]
        for weights in [*(model.weights for model in self.named.values()), *beside]:
            weights.close()


def open_inputs(plan: MergePlan, places: Sequence[Path] = (), *, offline: bool = False) -> Inputs:
    """Opens every model of the plan; headers are read, values are not."""
    base = None if plan.base is None else open_model(plan.base, places, offline=offline)
    tasks = {task: open_model(given.model, places, base=base, offline=offline) for task, given in plan.tasks.items()}
    given = {task: each.mask for task, each in plan.tasks.items() if each.mask is not None}
    masks = {task: open_safetensors(found_path(mask, places)) for task, mask in given.items()}
    mask, values = (
        None if file is None else open_safetensors(found_path(file, places)) for file in (plan.mask, plan.values)
    )
    return Inputs(base, tasks, masks, mask, values)


@dataclass(frozen=True)
class Candidate:
    """A tensor of the output before anything is decided: where it could come from.

    Attributes:
        name: in the output.
        base: the base's tensor, if it has it.
        sources: of those tasks that have it.
        expected: the tasks that should have it.
        part: the slice that it belongs to.
        position: of its layer in the slice.
    """

    name: str
    base: Source | None
    sources: Mapping[str, Source]
    expected: tuple[str, ...]
    part: Slice | None = None
    position: int | None = None

    @property
    def every(self) -> list[tuple[str, Source]]:
        """With the base, first."""
        return [*([("base", self.base)] if self.base is not None else []), *self.sources.items()]


Table = dict[str, Source]


def tables(plan: MergePlan, inputs: Inputs) -> tuple[Table | None, dict[str, Table]]:
    """name as the base has it -> tensor, for the base and each task."""
    base = None if inputs.base is None else {n: Source(inputs.base.weights, n) for n in inputs.base.weights.names()}
    found: dict[str, Table] = {}
    for task, model in inputs.tasks.items():
        prefix = plan.tasks[task].prefix
        names = list(model.weights.names())
        if prefix and not any(name.startswith(prefix) for name in names):
            raise BadValue("prefix", prefix, f"the beginning of a name, such as {names[0]!r}", f"tasks.{task}")
        found[task] = {name.removeprefix(prefix): Source(model.weights, name) for name in names}
        if len(found[task]) != len(names):
            raise Inconsistent(f"tasks.{task}: without the prefix {prefix!r} two tensors have one name")
    return base, found


def candidates(plan: MergePlan, inputs: Inputs) -> list[Candidate]:
    """Every tensor that any input has, in the order of the base's files, then the tasks'."""
    base, tasks = tables(plan, inputs)
    if plan.slices:
        return list(_sliced(plan, base, tasks))
    names = dict.fromkeys(name for table in ([base] if base else []) + list(tasks.values()) for name in table)
    return [_candidate(name, base, tasks, tuple(tasks)) for name in names]


def _candidate(name: str, base: Table | None, tasks: Mapping[str, Table], expected: tuple[str, ...]) -> Candidate:
    sources = {task: table[name] for task, table in tasks.items() if name in table}
    return Candidate(name, base.get(name) if base else None, sources, expected)


def _sliced(plan: MergePlan, base: Table | None, tasks: Mapping[str, Table]) -> Iterator[Candidate]:
    """Tensors before the layers from the first slice's inputs, the layers slice by slice, the rest from the last's."""
    first_task = tasks[next(iter(plan.slices[0].inputs))]
    stack = _stack(first_task)
    for name in _outside(plan.slices[0], stack, base, tasks, before=True):
        yield _of_slice(name, plan.slices[0], base, tasks)
    offset = 0
    for number, part in enumerate(plan.slices):
        length = _length(part, number)
        for position in range(length):
            yield from _layer(part, number, stack, position, offset + position, base, tasks)
        offset += length
    for name in _outside(plan.slices[-1], stack, base, tasks, before=False):
        yield _of_slice(name, plan.slices[-1], base, tasks)


def _of_slice(name: str, part: Slice, base: Table | None, tasks: Mapping[str, Table]) -> Candidate:
    inner = {task: tasks[task] for task in part.inputs}
    found = _candidate(name, base, inner, tuple(inner))
    return Candidate(found.name, found.base, found.sources, found.expected, part)


def _layer(
    part: Slice, number: int, stack: str, position: int, output: int, base: Table | None, tasks: Mapping[str, Table]
) -> Iterator[Candidate]:
    """The tensors of one layer of the output."""
    wanted = {task: given.layers[0] + position for task, given in part.inputs.items()}
    start = part.base[0] if part.base is not None else next(iter(part.inputs.values())).layers[0]
    found: dict[str, dict[str, Source]] = {}
    for task, layer in wanted.items():
        of_task = _numbered(tasks[task], stack, layer)
        if not of_task:
            there = f"0 to {stacks(tasks[task]).get(stack, 0) - 1}"
            raise Inconsistent(f"plan.slices.{number}.{task}: no layer {layer} in {stack!r}; it has {there}")
        for name, source in of_task.items():
            found.setdefault(renumbered(name, output), {})[task] = source
    of_base = {} if base is None else _numbered(base, stack, start + position)
    for name in of_base:
        found.setdefault(renumbered(name, output), {})
    renamed = {renumbered(name, output): source for name, source in of_base.items()}
    for name, sources in found.items():
        yield Candidate(name, renamed.get(name), sources, tuple(wanted), part, position)


def _numbered(table: Table, stack: str, number: int) -> Table:
    found = {name: place_of(name) for name in table}
    return {n: table[n] for n, place in found.items() if place and place.stack == stack and place.number == number}


def _outside(part: Slice, stack: str, base: Table | None, tasks: Mapping[str, Table], *, before: bool) -> list[str]:
    named = dict.fromkeys(
        name for table in [*([base] if base else []), *(tasks[t] for t in part.inputs)] for name in table
    )
    outside = [name for name in named if (place := place_of(name)) is None or place.stack != stack]
    return [name for name in outside if _comes_before(name) == before]


def _comes_before(name: str) -> bool:
    return first_fitting(name, OUTSIDE) == 0.0


def _stack(table: Table) -> str:
    found = stacks(table)
    longest = max(found.values(), default=0)
    of_that = [stack for stack, layers in found.items() if layers == longest]
    if len(of_that) != 1:
        raise Inconsistent(
            f"plan.slices: needs one stack of numbered layers, found {', '.join(map(repr, of_that)) or 'none'}"
        )
    return of_that[0]


def _length(part: Slice, number: int) -> int:
    lengths = {task: given.layers[1] - given.layers[0] for task, given in part.inputs.items()}
    if part.base is not None:
        lengths["base"] = part.base[1] - part.base[0]
    if len(set(lengths.values())) != 1:
        raise Inconsistent(f"plan.slices.{number}: the inputs give different numbers of layers: {lengths}")
    return next(iter(lengths.values()))
