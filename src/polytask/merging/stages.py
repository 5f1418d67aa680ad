"""A pipeline's steps, ready for one tensor: bound to its tasks, its place in the noise, its shape and depth."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from polytask.core import geometry
from polytask.core.blocks import Granularity, shaped
from polytask.core.errors import BadValue
from polytask.core.noise import Noise
from polytask.core.rules import BadRow, RuleSpec
from polytask.core.state import Rule
from polytask.core.statistics import Scope, Statistic
from polytask.core.task_vectors import weighted_sum
from polytask.merging.contract import Pipeline, Step, TransformSpec, use_rule

BASE = "base"  # the name of row 0 where a rule sees the base among the models

# (values [T, n], base [n] or None, what was measured, first element) -> [T, n], from the rule [n]
Call = Callable[[Tensor, Tensor | None, Any, int], Tensor]


@dataclass(frozen=True)
class Stage:
    """One step of one tensor.

    Attributes:
        granularity: what it sees at a time; "tensor" only for the rule.
        statistic: what must be measured over the values that reach it, or None.
        signature: equal for stages of other tensors whose statistics may be taken together.
        call: the step itself, on a block.
    """

    granularity: Granularity
    statistic: Statistic | None
    signature: tuple[Any, ...]
    call: Call

    @property
    def whole(self) -> bool:
        """Whether it must see the tensor as one."""
        return self.granularity not in _IN_BLOCKS


_IN_BLOCKS = ("element", "row")


def sees_whole(pipeline: Pipeline) -> bool:
    """Whether its rule must see a tensor as one; a rule on Gram matrices needs no more than the weights it gives."""
    spec = pipeline.rule.spec
    return spec.granularity not in _IN_BLOCKS and not (isinstance(spec, RuleSpec) and spec.needs == ("gram",))


def stages_of(
    pipeline: Pipeline, tasks: Sequence[str], shape: Sequence[int], *, seed: int, name: str, depth: float | None
) -> list[Stage]:
    """The stages of one tensor, the last of which is the rule.

    Args:
        tasks: of the rows.
        shape: of the tensor.
        seed, name: of the noise; the tensor's name.
        depth: of the tensor in the model.
    """
    stages: list[Stage] = []
    signature: tuple[Any, ...] = (tuple(tasks),)
    for index, step in enumerate((*pipeline.transforms, _for_shape(pipeline.rule, shape))):
        signature = (*signature, step.spec.name, tuple(sorted((key, str(v)) for key, v in step.parameters.items())))
        keys = ("merge", step.spec.name, *_repeat(pipeline, index))
        if isinstance(step.spec, TransformSpec):
            stages.append(_transform_stage(step, step.spec, tasks, shape, seed, keys, name, depth, signature))
        elif step.spec.needs == ("gram",):
            stages.append(_gram_stage(step, tasks, seed, keys, pipeline.groups, signature))
        else:
            stages.append(_rule_stage(step, step.spec, tasks, shape, Noise(seed, *keys, name), signature))
    return stages


@dataclass(frozen=True)
class GramWeights:
    """The statistic of a rule on Gram matrices: G summed over blocks in float64, then the rule's weights."""

    step: Step
    tasks: tuple[str, ...]
    noise: Noise
    scope: Scope

    def begin(self, tasks: int) -> Tensor:
        return torch.zeros(tasks, dtype=torch.float64)

    def part(self, stack: Tensor, state: Tensor) -> Tensor:
        return geometry.gram(stack)

    def add(self, total: Tensor, part: Tensor) -> Tensor:
        return total.add_(part)

    def end(self, state: Tensor, total: Tensor) -> tuple[Tensor, bool]:
        assert isinstance(self.step.spec, RuleSpec)
        rule = Rule(self.step.spec, self.tasks, seed=self.noise.seed, **_of_present(self.step, self.tasks))
        return rule(self.tasks, total, keys=[str(key) for key in self.noise.keys]), False

    def at(self, state: Tensor, block: int) -> Tensor:
        return state


def _for_shape(step: Step, shape: Sequence[int]) -> Step:
    """The rule for a tensor of this shape: what a rule on matrices declares for those that are none."""
    assert isinstance(step.spec, RuleSpec)
    if step.spec.otherwise is None or len(shape) == 2:
        return step
    other = use_rule(step.spec.otherwise)
    common = {key: value for key, value in step.parameters.items() if key in other.spec.parameters}
    return use_rule(step.spec.otherwise, **common)


def _repeat(pipeline: Pipeline, index: int) -> tuple[int, ...]:
    """What tells a transform's noise from that of the same transform earlier in the pipeline."""
    names = [step.spec.name for step in pipeline.steps]
    earlier = names[:index].count(names[index])
    return (earlier,) if earlier else ()


def _transform_stage(
    step: Step,
    spec: TransformSpec,
    tasks: Sequence[str],
    shape: Sequence[int],
    seed: int,
    keys: tuple[int | str, ...],
    name: str,
    depth: float | None,
    signature: tuple[Any, ...],
) -> Stage:
    numbers = step.numbers(tasks)
    fixed = {**numbers, **({"depth": depth} if spec.deep else {})}
    streams = [Noise(seed, *keys, task, name) for task in tasks] if spec.random else []

    def call(values: Tensor, base: Tensor | None, measured: Any, start: int) -> Tensor:
        extra = {"noise": tuple(stream.shifted(start) for stream in streams)} if spec.random else {}
        inputs = [shaped(values, shape, spec.granularity), *([measured] if spec.statistic else [])]
        return spec.function(*inputs, **fixed, **extra).reshape(values.shape)

    return Stage(spec.granularity, step.statistic(numbers), signature, call)


def _rule_stage(
    step: Step, spec: RuleSpec, tasks: Sequence[str], shape: Sequence[int], noise: Noise, signature: tuple[Any, ...]
) -> Stage:
    numbers = step.numbers(tasks)
    ones = {"priority": torch.ones(len(tasks), dtype=torch.float64)} if spec.prefers else {}

    def call(values: Tensor, base: Tensor | None, measured: Any, start: int) -> Tensor:
        inputs: list[Any] = [shaped(values, shape, spec.granularity)]
        if "base" in spec.needs:
            if base is None:
                raise BadValue("the base", None, "a base model, which the rule reads", step.where)
            inputs.append(shaped(base[None], shape, spec.granularity)[0])
        if spec.init:
            inputs.append(spec.init(len(tasks)))
        if spec.statistic:
            inputs.append(measured)
        extra = {"noise": noise.shifted(start)} if spec.random else {}
        try:
            found = spec.function(*inputs, **numbers, **ones, **extra)
        except BadRow as bad:
            raise BadValue(f"{bad.what} of task {tasks[bad.row]!r}", bad.found, bad.allowed, step.where) from None
        return (found[0] if spec.init else found).reshape(-1)

    return Stage(spec.granularity, step.statistic(numbers), signature, call)


def _gram_stage(
    step: Step, tasks: Sequence[str], seed: int, keys: tuple[int | str, ...], groups: Scope, signature: tuple[Any, ...]
) -> Stage:
    statistic = GramWeights(step, tuple(tasks), Noise(seed, *keys), groups)
    return Stage("element", statistic, signature, lambda values, base, measured, start: weighted_sum(values, measured))


def _of_present(step: Step, tasks: Sequence[str]) -> dict[str, Any]:
    """The step's parameters without the numbers of tasks that this group lacks."""
    return {
        name: {task: number for task, number in value.items() if task in tasks} if isinstance(value, dict) else value
        for name, value in step.parameters.items()
    }
