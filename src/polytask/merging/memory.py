"""A pipeline on task vectors that are in memory: for tests, for learned merges, and as a rule on gradients."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from polytask.core.noise import Noise
from polytask.core.rules import RuleSpec
from polytask.core.task_vectors import TaskVectors
from polytask.merging.contract import MethodSpec, Pipeline
from polytask.merging.passes import Piece, combined
from polytask.merging.stages import stages_of


def apply(
    pipeline: Pipeline,
    vectors: TaskVectors,
    *,
    base: Mapping[str, Tensor] | None = None,
    seed: int = 0,
    groups: Mapping[str, str] | None = None,
    depths: Mapping[str, float] | None = None,
) -> dict[str, Tensor]:
    """scale * rule(transforms(vectors)) by parameter name, in the vectors' type; the same numbers as a merge of files.

    Args:
        pipeline: what is done.
        vectors: deltas or the models' values, whichever the pipeline takes; left as they are.
        base: the base's values, for rules that read them.
        seed: of the noise.
        groups: name -> layer; a name that is missing is in the layer "".
        depths: name -> place in the model from 0 to 1.
    """
    pipeline.check_tasks(vectors.tasks)
    pipeline.check_number(len(vectors.tasks))
    pieces = [
        _piece(pipeline, vectors.tasks, name, stack, (base or {}).get(name), seed, groups or {}, depths or {})
        for name, stack in vectors.stacks.items()
    ]
    found = combined(pieces)
    return {name: (found[name] * pipeline.scale).to(vectors.stacks[name].dtype) for name in found}


def as_rule(method: MethodSpec) -> RuleSpec:
    """The method as a rule on one parameter's stack, for the checks of rules and for gradients.

    A statistic is then of that parameter alone, whatever its scope, and its depth is that of the last layer.
    """

    def function(stack: Tensor, *, noise: Noise | None = None, **parameters: Any) -> Tensor:
        tasks = [str(row) for row in range(len(stack))]
        pipeline = method(**{name: _by_task(value) for name, value in parameters.items()})
        seed = 0 if noise is None else noise.torch_seed()
        return apply(pipeline, TaskVectors(tasks, {"": stack}), seed=seed, depths={"": 1.0})[""]

    return RuleSpec(
        name=method.name,
        function=function,
        source=method.source,
        needs=("stack",),
        granularity="tensor",
        returns="combined",
        scale="own",
        claims=frozenset(),
        parameters=method.parameters,
        random=any(step.spec.random for step in method().steps),
        tasks=method().tasks,
    )


def _by_task(value: Any) -> Any:
    """A number a task, as `Rule` hands it over, under the names that `as_rule` gives the tasks; NaN stands for none."""
    if not isinstance(value, Tensor):
        return value
    return {str(row): number for row, number in enumerate(value.tolist()) if number == number}


def _piece(
    pipeline: Pipeline,
    tasks: Sequence[str],
    name: str,
    stack: Tensor,
    base: Tensor | None,
    seed: int,
    groups: Mapping[str, str],
    depths: Mapping[str, float],
) -> Piece:
    shape = tuple(stack.shape[1:])
    working = torch.promote_types(stack.dtype, torch.float32)
    rows = stack.reshape(len(stack), -1)
    flat = None if base is None else base.reshape(-1).to(working)

    def read(start: int, stop: int, check: bool) -> tuple[Tensor, Tensor | None]:
        block = torch.empty(len(rows), stop - start, dtype=working).copy_(rows[:, start:stop])
        return block, None if flat is None else flat[start:stop]

    stages = stages_of(pipeline, tasks, shape, seed=seed, name=name, depth=depths.get(name))
    return Piece(name, shape, tasks, stages, read, groups.get(name, ""))
