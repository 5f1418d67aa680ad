"""From a plan and its opened models to one job a tensor: what is merged, what is taken over, what is left out.

Nothing is dropped silently: whatever is not merged is in `notes`, or is an error.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase

import torch

from polytask.core.errors import BadValue, Inconsistent, MissingInput, UnknownName, nearest
from polytask.merging import private
from polytask.merging.alignment import Alignment, align
from polytask.merging.contract import Pipeline
from polytask.merging.inputs import Candidate, Inputs, candidates
from polytask.merging.jobs import Source, Take, TensorJob
from polytask.merging.layers import depths, layer_of, renumbered
from polytask.merging.pipelines import Pipelines, patterns_of
from polytask.merging.plan import MergePlan
from polytask.merging.vocabulary import of_one_size
from polytask.merging.weights.interface import Weights
from polytask.merging.weights.largest import LargestWeights

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


@dataclass(frozen=True)
class Assembly:
    """What a plan comes to.

    Attributes:
        jobs: a tensor of the output each.
        left_out: tensor -> why it is not in the output.
        notes: what was decided that somebody may want to know, a line each.
        alignment: of inputs with different tokenizers.
    """

    jobs: list[TensorJob]
    left_out: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    alignment: Alignment | None = None

    @property
    def merged(self) -> list[TensorJob]:
        return [job for job in self.jobs if isinstance(job.pipeline, Pipeline)]


def assemble(plan: MergePlan, inputs: Inputs) -> Assembly:
    """The jobs of a plan.

    Raises:
        UnknownName, BadValue: a rule, parameter or pattern that does not exist or is not allowed.
        MissingInput: a rule that needs a base, and there is none.
        Inconsistent: names, shapes or types that differ, and the plan does not say what to do.
    """
    pipelines = Pipelines(plan)
    _check_base(plan, pipelines)
    found = candidates(plan, inputs)
    if not found:
        raise Inconsistent("plan: the models have no tensors")
    names = [candidate.name for candidate in found]
    _check_patterns(plan, names)
    _check_beside(inputs, names)
    alignment = align(plan, inputs)
    assembler = _Assembler(plan, inputs, pipelines, _depths(plan, found), alignment)
    for candidate in found:
        assembler.add(candidate)
    if not assembler.jobs:
        raise Inconsistent("plan: no tensor is left for the output")
    return Assembly(assembler.jobs, assembler.left_out, assembler.notes(), alignment)


class _Assembler:
    """Decides tensor by tensor."""

    def __init__(
        self,
        plan: MergePlan,
        inputs: Inputs,
        pipelines: Pipelines,
        depths: Mapping[str, float],
        alignment: Alignment | None,
    ) -> None:
        self._plan, self._inputs, self._pipelines, self._depths = plan, inputs, pipelines, depths
        self._alignment = alignment
        self._private = private.owners(inputs)
        self._tied = _tied(inputs)
        self.jobs: list[TensorJob] = []
        self.left_out: dict[str, str] = {}
        self._counts: dict[str, list[str]] = {}

    def notes(self) -> list[str]:
        return [
            f"{line}: {names[0]}" + (f" and {len(names) - 1} more" if len(names) > 1 else "")
            for line, names in self._counts.items()
        ]

    def add(self, candidate: Candidate) -> None:
        values = self._inputs.values
        if values is not None and candidate.name in values.names():
            self._take(candidate, "values", _of_shape(values, candidate, "value"), "taken over from the plan's values")
            return
        kept = next((kept for kept in self._plan.keep if fnmatchcase(candidate.name, kept.pattern)), None)
        if kept is not None:
            self._keep(candidate, kept.take)
            return
        settled = self._complete(candidate)
        if settled is None:
            return
        if not all(_dtype(source).is_floating_point for _, source in settled.every):
            self._integers(settled)
            return
        self._merge(settled)

    def _keep(self, candidate: Candidate, take: str) -> None:
        if take == "drop":
            self._leave(candidate, "keep: drop")
            return
        source = dict(candidate.every).get(take)
        if source is None:
            raise Inconsistent(f"plan.keep: {take!r} has no tensor {candidate.name!r}; {_who(candidate)} it")
        self._take(candidate, take, source, f"taken over from {take}")

    def _complete(self, candidate: Candidate) -> Candidate | None:
        """The candidate with a tensor for every task that takes part; None where it is settled already."""
        missing = [task for task in candidate.expected if task not in candidate.sources]
        needs_base = self._inputs.base is not None
        if not missing and (candidate.base is not None or not needs_base):
            return candidate
        owner = private.owner_of(candidate.name, self._private)
        if owner is not None:
            return self._of_task(candidate, owner)
        if candidate.name in self._tied and self._plan.tied == "drop" and (candidate.base is None):
            self._leave(candidate, "a second name of a tied tensor, which the base lacks")
            return None
        treatment = self._plan.partial
        if treatment == "error":
            self._refuse(candidate, missing)
        if treatment == "drop":
            self._leave(candidate, "partial: drop")
            return None
        if treatment == "base":
            return self._as_base(candidate, missing)
        return self._of_available(candidate)

    def _of_task(self, candidate: Candidate, owners: Sequence[str]) -> Candidate | None:
        """A private parameter of a task: taken over from the input that has the task."""
        have = [task for task in owners if task in candidate.sources]
        if not have:
            self._leave(candidate, "private to a task that none of the inputs has")
            return None
        if len(have) == 1:
            self._take(candidate, have[0], candidate.sources[have[0]], f"private, taken over from {have[0]}")
            return None
        return self._of_available(candidate)

    def _as_base(self, candidate: Candidate, missing: Sequence[str]) -> Candidate | None:
        if candidate.base is None:
            self._leave(candidate, "partial: base, and the base lacks it")
            return None
        self._note("partial: base, an input without it counts as the base", candidate.name)
        given = {task: candidate.sources.get(task, candidate.base) for task in candidate.expected}
        return replace(candidate, sources=given)

    def _of_available(self, candidate: Candidate) -> Candidate | None:
        if not candidate.sources:
            self._take(candidate, "base", candidate.every[0][1], "taken over from base, which alone has it")
            return None
        if candidate.base is None and self._inputs.base is not None and self._pipelines.of != "models":
            (task, source), *others = candidate.sources.items()
            if others:
                raise Inconsistent(
                    f"partial: available: the base lacks {candidate.name!r}, which {_listed(candidate.sources)} have, "
                    "so there is no difference to merge; say whose to take, "
                    f"keep: [{{pattern: {candidate.name!r}, take: {task}}}]"
                )
            self._take(candidate, task, source, f"taken over from {task}, which alone has it")
            return None
        self._note("partial: available, merged over those that have it", candidate.name)
        return candidate

    def _refuse(self, candidate: Candidate, missing: Sequence[str]) -> None:
        lacking = [*(["base"] if candidate.base is None and self._inputs.base is not None else []), *missing]
        others = [name for task in lacking for name in self._inputs.named[task].weights.names()]
        hint = _prefix_hint(candidate.name, others, lacking)
        raise Inconsistent(
            f"plan: {candidate.name!r} is in {_listed(dict(candidate.every))} and not in {_listed(lacking)}{hint}; "
            f"say what to do: partial: base, available or drop, or keep: [{{pattern: {candidate.name!r}, take: ...}}]"
        )

    def _integers(self, candidate: Candidate) -> None:
        every = candidate.every
        dtypes = {str(_dtype(source)) for _, source in every}
        if len(dtypes) > 1:
            raise Inconsistent(f"plan: {candidate.name!r} has types {', '.join(sorted(dtypes))}: {_by(every, _dtype)}")
        shape = _same_shape(candidate)
        if self._plan.integers == "largest":
            source = Source(LargestWeights([source for _, source in every]), every[0][1].name)
            self._take(candidate, "largest", source, "whole numbers, the largest of all inputs")
            return
        if self._plan.integers == "error":
            sources = candidate.sources
            self._job(candidate, shape, _dtype(every[0][1]), sources, candidate.base, Take(equal=True))
            self._note("whole numbers, which must be equal", candidate.name)
            return
        self._take(candidate, every[0][0], every[0][1], f"whole numbers, taken over from {every[0][0]}")

    def _merge(self, candidate: Candidate) -> None:
        for owner, source in candidate.every:
            if _dtype(source) not in DTYPES.values():
                raise BadValue(
                    f"the type of {candidate.name!r}",
                    _plain(_dtype(source)),
                    f"{', '.join(DTYPES)}; merge before quantising",
                    f"{owner} ({source.weights.where(source.name)})",
                )
        if self._alignment is not None:
            candidate, note = self._alignment.of(candidate)
        else:
            candidate, note = of_one_size(candidate, self._plan.vocabulary)
        if note:
            self._note(note, candidate.name)
        dtype = self._output_dtype(candidate)
        tasks = [task for task in self._inputs.tasks if task in candidate.sources]
        depth = self._depths.get(candidate.name)
        pipeline = self._pipelines.at(candidate.name, depth, tasks, candidate.part)
        sources = {task: candidate.sources[task] for task in tasks}
        base = candidate.base if pipeline.of != "models" else None
        pipeline.check_number(len(tasks), base=base is not None)
        self._job(candidate, _same_shape(candidate), dtype, sources, base, pipeline, depth)
        self.jobs[-1] = self._masked(candidate, self.jobs[-1])

    def _masked(self, candidate: Candidate, job: TensorJob) -> TensorJob:
        """The job with those masks that have its tensor."""
        masks = {
            task: _of_shape(self._inputs.masks[task], candidate, "mask")
            for task in job.inputs
            if task in self._inputs.masks and job.name in self._inputs.masks[task].names()
        }
        whole = self._inputs.mask
        mask = None if whole is None or job.name not in whole.names() else _of_shape(whole, candidate, "mask")
        return replace(job, masks=masks, mask=mask)

    def _output_dtype(self, candidate: Candidate) -> torch.dtype:
        if self._plan.dtype is not None:
            return DTYPES[self._plan.dtype]
        stored = {name: self._stored(name, source) for name, source in candidate.every}
        if len(set(stored.values())) > 1:
            found = ", ".join(f"{_plain(dtype)} in {owner}" for owner, dtype in stored.items())
            raise Inconsistent(f"plan: {candidate.name!r} is {found}; say the output's type, dtype: bfloat16")
        return next(iter(stored.values()))

    def _stored(self, owner: str, source: Source) -> torch.dtype:
        """Of a tensor with an adapter, that of the tensor beneath it."""
        beneath = getattr(source.weights, "stored_dtype", None)
        return _dtype(source) if beneath is None else beneath(source.name)

    def _take(self, candidate: Candidate, owner: str, source: Source, line: str) -> None:
        shape, dtype = source.weights.shape(source.name), _dtype(source)
        if self._plan.dtype is not None and dtype in DTYPES.values():
            dtype = DTYPES[self._plan.dtype]
        self._job(candidate, shape, dtype, {owner: source}, None, Take())
        self._note(line, candidate.name)

    def _job(
        self,
        candidate: Candidate,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        sources: Mapping[str, Source],
        base: Source | None,
        pipeline: Pipeline | Take,
        depth: float | None = None,
    ) -> None:
        self.jobs.append(
            TensorJob(candidate.name, shape, dtype, dict(sources), pipeline, base, layer_of(candidate.name), depth)
        )

    def _leave(self, candidate: Candidate, why: str) -> None:
        self.left_out[candidate.name] = why
        self._note(f"left out ({why})", candidate.name)

    def _note(self, line: str, name: str) -> None:
        self._counts.setdefault(line, []).append(name)


def _check_base(plan: MergePlan, pipelines: Pipelines) -> None:
    if plan.base is None and pipelines.of in ("deltas", "base and models"):
        raise MissingInput(f"rule {plan.rule.kind!r} merges differences to a base: give one, base: DIR")


def _check_patterns(plan: MergePlan, names: Sequence[str]) -> None:
    for place, pattern in patterns_of(plan):
        if not any(fnmatchcase(name, pattern) for name in names):
            raise UnknownName("tensor that fits the pattern", pattern, names, f"plan.{place.removeprefix('plan.')}")


def _of_shape(weights: Weights, candidate: Candidate, what: str) -> Source:
    """A tensor of a file beside the models; BadValue if it has another shape than theirs."""
    shape, wanted = weights.shape(candidate.name), _same_shape(candidate)
    if shape != wanted:
        where = weights.where(candidate.name)
        raise BadValue(f"the shape of the {what} {candidate.name!r}", shape, f"{wanted}, as the tensor", where)
    return Source(weights, candidate.name)


def _check_beside(inputs: Inputs, names: Sequence[str]) -> None:
    """Every tensor of a mask, or of the plan's values, is one of the models'."""
    known = dict.fromkeys(names)
    for what, files in (("mask", [*inputs.masks.values(), inputs.mask]), ("plan's values", [inputs.values])):
        for weights in (file for file in files if file is not None):
            for name in weights.names():
                if name not in known:
                    raise UnknownName(f"tensor of the {what}", name, names, weights.where(name))


def _depths(plan: MergePlan, found: Sequence[Candidate]) -> dict[str, float]:
    """Tensor -> depth, counted inside a slice: its first layer has depth 0, its last one depth 1."""
    stated = [(entry.pattern, entry.value) for entry in plan.depth if not entry.outside]
    outside = [(entry.pattern, entry.value) for entry in plan.depth if entry.outside]
    slices: dict[int, dict[str, str]] = {}  # by identity: two slices may say the same
    for candidate in found:
        slices.setdefault(id(candidate.part), {})[candidate.name] = _inside(candidate)
    every: dict[str, float] = {}
    for inside in slices.values():
        known = depths(inside.values(), stated, outside)
        every |= {name: known[own] for name, own in inside.items()}
    return every


def _inside(candidate: Candidate) -> str:
    """The tensor's name with the number that its layer has in its slice."""
    return candidate.name if candidate.position is None else renumbered(candidate.name, candidate.position)


def _tied(inputs: Inputs) -> set[str]:
    """Output embeddings of inputs whose config says that they are the input embeddings."""
    found: set[str] = set()
    for model in inputs.named.values():
        if model.config.get("tie_word_embeddings"):
            found |= {name for name in model.weights.names() if name.endswith("lm_head.weight")}
    return found


def _prefix_hint(name: str, others: Sequence[str], lacking: Sequence[str]) -> str:
    """Where only a beginning of the names differs, says so."""
    for other in others:
        if other.endswith(f".{name}"):
            return f" (which has {other!r}: tasks.{lacking[0]}.prefix: {other.removesuffix(name)})"
        if name.endswith(f".{other}"):
            return f" (which has {other!r}: prefix: {name.removesuffix(other)} of those that have it)"
    return nearest(name, others)


def _same_shape(candidate: Candidate) -> tuple[int, ...]:
    every = candidate.every
    shapes = {source.weights.shape(source.name) for _, source in every}
    if len(shapes) > 1:
        raise Inconsistent(
            f"plan: {candidate.name!r} differs in shape: {_by(every, lambda s: list(s.weights.shape(s.name)))}; "
            f"say whose to take, keep: [{{pattern: {candidate.name!r}, take: {every[0][0]}}}]"
        )
    return next(iter(shapes))


def _by(every: Sequence[tuple[str, Source]], what: object) -> str:
    assert callable(what)
    return ", ".join(f"{owner} {what(source)}" for owner, source in every)


def _dtype(source: Source) -> torch.dtype:
    return source.weights.dtype(source.name)


def _plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _listed(names: Mapping[str, object] | Sequence[str]) -> str:
    *most, last = list(names)
    return f"{', '.join(most)} and {last}" if most else str(last)


def _who(candidate: Candidate) -> str:
    names = _listed(dict(candidate.every))
    return f"{names} {'have' if len(candidate.every) > 1 else 'has'}"
