"""From a plan whose rule is a learned one to a plan of numbers, which merges without data.

The tensors that are merged, and where every other one comes from, are those of the same plan with task arithmetic. On
these the method runs; then its coefficients stand in the place of the rule.
"""

import glob
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import quote

from torch import Tensor

from polytask.checkpoints.tensors import tensor_bytes
from polytask.core.errors import BadValue, MissingInput
from polytask.merging.assembly import Assembly, assemble
from polytask.merging.contract import find_method
from polytask.merging.inputs import Inputs
from polytask.merging.jobs import Source, Take
from polytask.merging.learning import Learned, LearnedSpec, find_learned, learned_names
from polytask.merging.plan import MergeData, MergePlan, RuleChoice
from polytask.merging.plan_file import Read
from polytask.merging.routing import FILE as ROUTER
from polytask.merging.samples import Samples
from polytask.merging.session import MergeSession
from polytask.merging.vectors import Stored, Vectors
from polytask.merging.weights.memory import MemoryWeights

Bridge = Callable[[Read, Inputs, bool], Samples]
"""(plan, its models, whether labels are read) -> the data; it knows what a directory says about its rows."""


def learned_of(plan: MergePlan) -> LearnedSpec | None:
    """The learned merge that the plan's rule is, its parameters checked; None where it is another rule.

    Raises: BadValue, UnknownName for what such a plan may not say.
    """
    if plan.rule.kind not in learned_names():
        find_method(plan.rule.kind)  # spelling first
        if plan.data is not None:
            raise BadValue("plan.data", plan.data.model_dump(), f"nothing: rule {plan.rule.kind!r} reads no data")
        return None
    spec = find_learned(plan.rule.kind)
    spec.checked(plan.rule.parameters)
    for key in ("transforms", "slices", "mask", "values"):
        if getattr(plan, key):
            found = getattr(plan, key) if isinstance(getattr(plan, key), str) else f"{len(getattr(plan, key))} of them"
            raise BadValue(f"plan.{key}", found, f"none beside rule {spec.name!r}")
    for task, given in plan.tasks.items():
        for key in ("parameters", "mask"):
            if getattr(given, key):
                allowed = f"nothing: rule {spec.name!r} learns what holds for a task"
                raise BadValue(f"plan.tasks.{task}.{key}", getattr(given, key), allowed)
    return spec


def provisional(plan: MergePlan) -> MergePlan:
    """The same plan with task arithmetic, which needs no data."""
    return plan.model_copy(update={"rule": RuleChoice(kind="task_arithmetic"), "data": None})


@dataclass(frozen=True)
class Learning:
    """A learned merge that can start.

    Attributes:
        spec: the method.
        plan: as it was given, with its `data`.
        assembly: of the provisional plan.
        samples: the data.
    """

    spec: LearnedSpec
    plan: MergePlan
    assembly: Assembly
    samples: Samples

    @property
    def parameters(self) -> dict[str, Any]:
        return self.spec.checked(self.plan.rule.parameters)

    def data(self) -> dict[str, dict[str, Any]]:
        """What is read of each task."""
        labels = self.spec.reads_labels(self.parameters)
        return {task: {**self.samples.facts(task), "labels": labels} for task in self.plan.tasks}

    def run(self, say: Callable[[int, int], None]) -> "Settled":
        """The session, passed to the method."""
        session = self._session(say)
        found = self.spec(session, seed=self.plan.seed, **self.parameters)
        about = {
            "rule": self.spec.name,
            "parameters": self.parameters,
            "data": {task: _seen(facts, session.drawn.get(task, 0)) for task, facts in self.data().items()},
            "coefficients": {
                task: dict(value) if isinstance(value, Mapping) else value for task, value in found.coefficients.items()
            },
            **found.facts,
        }
        values = self._placed(found)
        return Settled(_plan_of(self.plan, found, values), found, values, about)

    def _placed(self, found: Learned) -> dict[str, Tensor]:
        """Tensors of one task that the output takes over from that task's model."""
        owners = {job.name: next(iter(job.inputs)) for job in self.assembly.jobs if isinstance(job.pipeline, Take)}
        return {n: value for task, own in found.private.items() for n, value in own.items() if owners.get(n) == task}

    def _session(self, say: Callable[[int, int], None]) -> MergeSession:
        jobs = self.assembly.merged
        models = {
            task: Stored({job.name: job.inputs[task] for job in jobs if task in job.inputs}) for task in self.plan.tasks
        }
        base = None if self.plan.base is None else Stored({job.name: job.base for job in jobs if job.base is not None})
        taken = [job for job in self.assembly.jobs if isinstance(job.pipeline, Take)]
        fixed = Stored({job.name: next(iter(job.inputs.values())) for job in taken if job.inputs})
        vectors = Vectors(models, base, [job.name for job in jobs])
        return MergeSession(
            vectors, self.samples, fixed, self.spec.reads_labels(self.parameters), say, data_of(self.plan).lean
        )


@dataclass(frozen=True)
class Settled:
    """What came of it.

    Attributes:
        plan: of numbers; where the method gave merged values, the plan as it was.
        learned: by the method.
        values: of tensors that are not merged and have a place in the output.
        about: for the card.
    """

    plan: MergePlan
    learned: Learned
    values: dict[str, Tensor]
    about: dict[str, Any]

    def files(self) -> dict[str, bytes]:
        """Masks and values, beside the plan that names them, a router, and a task's tensors that have no place."""
        learned = self.learned
        named = {self.plan.tasks[task].mask: mask for task, mask in learned.masks.items()}
        named |= {self.plan.mask: learned.mask, self.plan.values: self.values, ROUTER: learned.router}
        for task, own in learned.private.items():
            named[f"private/{quote(task, safe='')}.safetensors"] = {
                n: v for n, v in own.items() if n not in self.values
            }
        return {file: tensor_bytes(tensors) for file, tensors in named.items() if file is not None and tensors}

    def assembled(self, inputs: Inputs, provisional: Assembly) -> Assembly:
        """What is written: the plan's numbers and masks, or the merged values that the method gave."""
        merged = self.learned.merged
        if not merged:
            masks = {task: MemoryWeights(mask, "learned mask") for task, mask in self.learned.masks.items()}
            mask = MemoryWeights(self.learned.mask, "learned mask") if self.learned.mask else None
            values = MemoryWeights(self.values, "learned values") if self.values else None
            return assemble(self.plan, replace(inputs, masks=masks, mask=mask, values=values))
        weights = MemoryWeights(merged, f"values of {self.about['rule']}")
        jobs = [
            replace(job, pipeline=Take(), base=None, inputs={"merged": Source(weights, job.name)})
            if job.name in merged
            else job
            for job in provisional.jobs
        ]
        return replace(provisional, jobs=jobs)


def samples_of(
    read: Read, inputs: Inputs, spec: LearnedSpec, samples: Samples | None, bridge: Bridge | None
) -> Samples:
    """The data that was handed over, else that of the models' own runs."""
    if samples is not None:
        if read.plan.data is not None:
            allowed = "nothing beside data that is handed over from Python"
            raise BadValue("plan.data", read.plan.data.model_dump(), allowed)
        return samples
    if bridge is None:
        raise MissingInput(
            f"rule {spec.name!r} reads a little data of each task: give samples= (polytask.merging.samples)"
        )
    return bridge(read, inputs, spec.reads_labels(spec.checked(read.plan.rule.parameters)))


def data_of(plan: MergePlan) -> MergeData:
    """What the plan says about the data, or the defaults."""
    return plan.data or MergeData()


def _plan_of(plan: MergePlan, found: Learned, values: Mapping[str, Tensor]) -> MergePlan:
    if found.merged:
        return plan
    weights = {task: _value(number) for task, number in found.coefficients.items()}
    rule = RuleChoice(kind="task_arithmetic", parameters={"weights": weights} if weights else {})
    if found.rule is not None:
        parameters = {key: value for key, value in found.rule.items() if key != "kind"}
        rule = RuleChoice(kind=found.rule["kind"], parameters=parameters)
    files = {task: f"masks/{quote(task, safe='')}.safetensors" for task in found.masks}
    tasks = {task: given.model_copy(update={"mask": files.get(task)}) for task, given in plan.tasks.items()}
    mask = "masks/all.safetensors" if found.mask else None
    beside = {"mask": mask, "values": "values.safetensors" if values else None}
    return plan.model_copy(update={"rule": rule, "tasks": tasks, "data": None, **beside})


def _value(number: float | Mapping[str, float]) -> Any:
    """A number, or a list by the tensors' names."""
    if not isinstance(number, Mapping):
        return number
    return [{"pattern": glob.escape(name), "value": value} for name, value in number.items()]


def _seen(facts: Mapping[str, Any], batches: int) -> dict[str, Any]:
    """With how much of it was read: batches, and rows where their number is known."""
    rows, size = facts.get("rows"), facts.get("batch_size")
    seen = {} if rows is None or size is None else {"rows_seen": min(rows, batches * size)}
    return {**facts, "batches_read": batches, **seen}
