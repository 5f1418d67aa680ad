"""A plan's rule and transforms as the pipeline of one tensor: values by name and depth, task by task."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from polytask.core.constraints import Parameter, PerTask
from polytask.core.errors import UnknownName
from polytask.merging.contract import MethodSpec, Pipeline, TransformSpec, find_method, find_transform, use_transform
from polytask.merging.plan import MergePlan, Slice
from polytask.merging.values import NOTHING, patterns_in, value_at

Levels = Sequence[tuple[str, Mapping[str, Any]]]
"""(place in the plan, parameters), the strongest first."""


class Pipelines:
    """Makes the pipeline of each tensor; tensors with the same values get the same object.

    Raises on making: UnknownName, BadValue for a method, transform or parameter that does not exist or is not allowed.
    """

    def __init__(self, plan: MergePlan) -> None:
        self._plan = plan
        self._method = find_method(plan.rule.kind)
        self._transforms = [find_transform(choice.kind) for choice in plan.transforms]
        self._made: dict[Any, Pipeline] = {}
        self._check_names()

    @property
    def of(self) -> str:
        """What the rows are; see RuleSpec.of."""
        return self._method.of

    def at(self, name: str, depth: float | None, tasks: Sequence[str], part: Slice | None = None) -> Pipeline:
        """The pipeline of the tensor `name`, which `tasks` have."""
        parameters = self._values(self._method.parameters, "rule", self._plan.rule.parameters, name, depth, tasks, part)
        steps = [
            self._values(spec.parameters, f"transforms.{number}", choice.parameters, name, depth, tasks, part)
            for number, (spec, choice) in enumerate(zip(self._transforms, self._plan.transforms, strict=True))
        ]
        key = repr((parameters, steps))
        if key not in self._made:
            made = self._method(**parameters)
            before = tuple(use_transform(spec, **own) for spec, own in zip(self._transforms, steps, strict=True))
            self._made[key] = Pipeline((*before, *made.transforms), made.rule, made.scale, made.groups)
        return self._made[key]

    def _values(
        self,
        declared: Mapping[str, Parameter],
        where: str,
        own: Mapping[str, Any],
        name: str,
        depth: float | None,
        tasks: Sequence[str],
        part: Slice | None,
    ) -> dict[str, Any]:
        whole: Levels = [*([("slice", part.parameters)] if part else []), (where, own)]
        found: dict[str, Any] = {}
        for key, parameter in declared.items():
            if isinstance(parameter.constraint, PerTask):
                each = {task: self._first(self._levels(task, whole, part), key, name, depth, task) for task in tasks}
                given = {task: value for task, value in each.items() if value is not NOTHING}
                if given:
                    found[key] = next(iter(given.values())) if _all_the_same(given, tasks) else given
            else:
                value = self._first(whole, key, name, depth, "")
                if value is not NOTHING:
                    found[key] = value
        return found

    def _levels(self, task: str, whole: Levels, part: Slice | None) -> Levels:
        """A slice's own task, the slice, the task, the rule."""
        inner = [(f"slice.{task}", part.inputs[task].parameters)] if part and task in part.inputs else []
        task_level = (f"tasks.{task}", self._plan.tasks[task].parameters)
        return [*inner, *whole[:-1], task_level, whole[-1]]

    def _first(self, levels: Levels, key: str, name: str, depth: float | None, task: str) -> Any:
        for place, parameters in levels:
            value = parameters.get(key, NOTHING)
            if isinstance(value, Mapping):
                value = value.get(task, NOTHING)
            found = value if value is NOTHING else value_at(value, name, depth, f"plan.{place}.{key}")
            if found is not NOTHING:
                return found
        return NOTHING

    def _check_names(self) -> None:
        """Every parameter that the plan names exists, and what is given task by task is a number a task."""
        specs: list[tuple[str, MethodSpec | TransformSpec, Mapping[str, Any]]] = [
            ("plan.rule", self._method, self._plan.rule.parameters),
            *(
                (f"plan.transforms.{number}", spec, choice.parameters)
                for number, (spec, choice) in enumerate(zip(self._transforms, self._plan.transforms, strict=True))
            ),
        ]
        for place, spec, given in specs:
            for key, value in given.items():
                if key not in spec.parameters:
                    raise UnknownName("parameter", key, spec.parameters, f"{place} ({spec.name})")
                if isinstance(value, Mapping) and not isinstance(spec.parameters[key].constraint, PerTask):
                    raise UnknownName("parameter with a number a task", key, _per_task(spec), f"{place} ({spec.name})")
        every = [key for _, spec, _ in specs for key in spec.parameters]
        by_task = [key for _, spec, _ in specs for key in _per_task(spec)]
        for place, given in _task_places(self._plan):
            for key in given:
                if key not in by_task:
                    what = "parameter with a number a task" if key in every else "parameter"
                    raise UnknownName(what, key, by_task, f"{place} ({self._plan.rule.kind})")
        for number, part in enumerate(self._plan.slices):
            for key in part.parameters:
                if key not in every:
                    raise UnknownName("parameter", key, every, f"plan.slices.{number} ({self._plan.rule.kind})")


def patterns_of(plan: MergePlan) -> Iterator[tuple[str, str]]:
    """(place, pattern) of every pattern in the plan."""
    for pattern in patterns_in(plan.rule.parameters):
        yield "rule", pattern
    for choice in plan.transforms:
        for pattern in patterns_in(choice.parameters):
            yield choice.kind, pattern
    for place, given in _task_places(plan):
        for pattern in patterns_in(given):
            yield place, pattern
    for part in plan.slices:
        for pattern in patterns_in(part.parameters):
            yield "slices", pattern
    for kept in plan.keep:
        yield "keep", kept.pattern


def _task_places(plan: MergePlan) -> list[tuple[str, Mapping[str, Any]]]:
    found: list[tuple[str, Mapping[str, Any]]] = [
        (f"plan.tasks.{task}", given.parameters) for task, given in plan.tasks.items()
    ]
    for number, part in enumerate(plan.slices):
        found += [(f"plan.slices.{number}.{task}", given.parameters) for task, given in part.inputs.items()]
    return found


def _per_task(spec: MethodSpec | TransformSpec) -> list[str]:
    return [name for name, parameter in spec.parameters.items() if isinstance(parameter.constraint, PerTask)]


def _all_the_same(given: Mapping[str, Any], tasks: Sequence[str]) -> bool:
    return len(given) == len(tasks) and len({repr(value) for value in given.values()}) == 1
