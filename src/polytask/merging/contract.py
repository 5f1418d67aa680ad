"""The contract of a merge: transforms of task vectors, then a rule that combines them; together, a pipeline.

A transform is a published operation on each task's vector, one small file, found by name (`core.names.TRANSFORMS`):

    @transform("trim", source="arXiv:2306.01708", statistic=lambda density, scope: Kept(density, scope))
    def trim(stack, measured, *, density=0.2, scope="tensor"):      # float32 [T, n] -> float32 [T, n]
        ...

It sees one block of a tensor at a time ([T, rows, row] if its granularity is "row"), owns `stack` and may overwrite it.
What it must know of the whole tensor, layer or model is its statistic (`core.statistics`), measured over the values
that reach it, and handed in as `measured` (absent from the signature where there is no statistic). Keyword-only names
with a meaning: `noise`, a tuple of Noise, one a task, index 0 being the block's first element; `depth`, the tensor's
place in the model from 0 to 1, or None. All other keyword-only arguments are parameters, declared as a rule's are;
one under `PerTask` arrives as float64 [T].

A rule is `core.rules`': on `stack` (blocks, as above; it must leave its inputs alone), on `matrix` (whole tensors), or
on `gram` (one Gram matrix for each of `groups`, then a weighted sum). `noise` is then one Noise of this tensor.

A method is a published merge with a name (`core.names.METHODS`), base + scale * rule(transform(task vectors)):

    ties = composed(__name__, "trim", "elect", source="arXiv:2306.01708")

or, where there is more to it, a function under `@method` from its parameters to a pipeline.
Every rule that needs task vectors alone is a method too, by its own name.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

from polytask.core import rules
from polytask.core.blocks import Granularity
from polytask.core.catalogue import Catalogue, summary
from polytask.core.constraints import Choice, Interval, Parameter, PerTask, check_parameters, named_by, parameters_of
from polytask.core.errors import BadValue, MissingInput, UnknownName
from polytask.core.names import LEARNED, METHODS, RULES, TRANSFORMS
from polytask.core.rules import Of, RuleSpec
from polytask.core.statistics import SCOPES, Scope, Statistic


@dataclass(frozen=True)
class TransformSpec:
    """A registered transform.

    Attributes:
        name: as in plans.
        function: the transform itself.
        source: paper with the equation or algorithm number.
        granularity: what a block is made of: element or row.
        statistic: builder, from those of the parameters that it names, of what must be measured first; or of None.
        separate: True where a task's result depends on no other task.
        parameters: its keyword-only parameters.
        random: True if it takes `noise`.
        deep: True if it takes `depth`.
    """

    name: str
    function: Callable[..., Any]
    source: str
    granularity: Granularity = "element"
    statistic: Callable[..., Statistic | None] | None = None
    separate: bool = True
    parameters: dict[str, Parameter] = field(default_factory=dict)
    random: bool = False
    deep: bool = False

    @property
    def summary(self) -> str:
        """The first line of the docstring of the transform's file."""
        return summary(self.function)


_SPECIAL = ("noise", "depth")
_transforms = Catalogue("transform", TRANSFORMS)
_methods = Catalogue("merge method", METHODS)


def transform(
    name: str,
    *,
    source: str,
    granularity: Granularity = "element",
    statistic: Callable[..., Statistic | None] | None = None,
    separate: bool = True,
) -> Callable[[Callable[..., Any]], TransformSpec]:
    """Declares the decorated function as the transform `name`. One not in the shipped table is added to it."""

    def declare(function: Callable[..., Any]) -> TransformSpec:
        arguments = inspect.signature(function).parameters
        spec = TransformSpec(
            name,
            function,
            source,
            granularity,
            statistic,
            separate,
            parameters_of(function, skip=_SPECIAL),
            "noise" in arguments,
            "depth" in arguments,
        )
        positional = ["stack", *(["measured"] if statistic else [])]
        if list(arguments)[: len(positional)] != positional or granularity not in ("element", "row"):
            allowed = f"({', '.join(positional)}, *, parameters...), granularity element or row"
            raise BadValue("the signature", [*arguments, granularity], allowed, f"transform {name!r}")
        _transforms.declare(name, spec, function.__module__)
        return spec

    return declare


def find_transform(name: str) -> TransformSpec:
    """The transform called `name`, shipped or added; UnknownName with the nearest match if there is none."""
    return _transforms.find(name)


def transform_names() -> list[str]:
    return _transforms.names()


@dataclass(frozen=True)
class Step:
    """A transform or a rule with its parameters, all of them, checked."""

    spec: TransformSpec | RuleSpec
    parameters: dict[str, Any]

    def numbers(self, tasks: Sequence[str]) -> dict[str, Any]:
        """The parameters as the function gets them: those with a number a task as float64 [T] for `tasks`."""
        found = dict(self.parameters)
        for name, about in self.spec.parameters.items():
            if isinstance(about.constraint, PerTask):
                value = found[name]
                if isinstance(value, Mapping):  # this tensor may be absent from some tasks' models
                    value = {task: number for task, number in value.items() if task in tasks}
                found[name] = about.constraint.numbers(name, value, about.default, tasks, self.where)
        return found

    def named_tasks(self) -> list[str]:
        """Every task that a parameter names; whoever knows all tasks checks them against these."""
        return [task for value in self.parameters.values() if isinstance(value, Mapping) for task in value]

    def statistic(self, numbers: Mapping[str, Any]) -> Statistic | None:
        return self.spec.statistic(**named_by(self.spec.statistic, numbers)) if self.spec.statistic else None

    @property
    def where(self) -> str:
        return f"{'rule' if isinstance(self.spec, RuleSpec) else 'transform'} {self.spec.name!r}"


def use_transform(name: str | TransformSpec, **parameters: Any) -> Step:
    """A transform with these parameters, checked, and the defaults of the others."""
    spec = find_transform(name) if isinstance(name, str) else name
    return Step(spec, check_parameters(spec.parameters, parameters, f"transform {spec.name!r}"))


def use_rule(name: str | RuleSpec, **parameters: Any) -> Step:
    """A rule with these parameters, checked, and the defaults of the others; it must need task vectors alone."""
    spec = rules.find(name) if isinstance(name, str) else name
    if not on_vectors(spec):
        other = next(need for need in spec.needs if need not in VECTORS)
        allowed = f"merging has task vectors, no {other}; 'polytask rules' lists what each rule needs"
        raise MissingInput(f"rule {spec.name!r} needs {other}; {allowed}")
    return Step(spec, check_parameters(spec.parameters, parameters, f"rule {spec.name!r}"))


@dataclass(frozen=True)
class Pipeline:
    """What is done with one tensor: base + scale * rule(transforms(task vectors)).

    Attributes:
        transforms: steps, first to last.
        rule: what combines.
        scale: of the combined vector.
        groups: what one Gram matrix covers, for a rule on Gram matrices: tensor, layer or all.
    """

    transforms: tuple[Step, ...]
    rule: Step
    scale: float = 1.0
    groups: Scope = "tensor"

    @property
    def of(self) -> Of:
        """What the rows are: see RuleSpec.of."""
        assert isinstance(self.rule.spec, RuleSpec)
        return self.rule.spec.of

    @property
    def tasks(self) -> int | None:
        """How many tasks it combines; None for any number."""
        assert isinstance(self.rule.spec, RuleSpec)
        return self.rule.spec.tasks

    @property
    def steps(self) -> tuple[Step, ...]:
        return (*self.transforms, self.rule)

    def check_tasks(self, tasks: Sequence[str]) -> None:
        """UnknownName if a parameter names a task that is not among those of the merge; a tensor may have fewer."""
        for step in self.steps:
            for task in step.named_tasks():
                if task not in tasks:
                    raise UnknownName("task", task, tasks, step.where)

    def check_number(self, tasks: int, *, base: bool = False) -> None:
        """BadValue if the rule does not combine so many tasks, the base being one more where it is a model to it."""
        assert isinstance(self.rule.spec, RuleSpec)
        self.rule.spec.check_number(tasks + (base and self.of == "base and models"))


@dataclass(frozen=True)
class MethodSpec:
    """A merge with a name; calling it with parameters gives the checked pipeline."""

    name: str
    function: Callable[..., Pipeline]
    source: str
    parameters: dict[str, Parameter]

    def __call__(self, **parameters: Any) -> Pipeline:
        return self.function(**check_parameters(self.parameters, parameters, f"method {self.name!r}"))

    @property
    def of(self) -> Of:
        """What the rows are, at the default parameters."""
        return self().of

    @property
    def summary(self) -> str:
        """The first line of the docstring of the method's file."""
        return summary(self.function)


def method(name: str, *, source: str) -> Callable[[Callable[..., Pipeline]], MethodSpec]:
    """Declares the decorated function as the merge method `name`. One not in the shipped table is added to it."""

    return lambda function: _declared(MethodSpec(name, function, source, parameters_of(function)))


def composed(module: str, transform: str, rule: str, *, source: str, **settled: Any) -> MethodSpec:
    """Declares the merge method that is a transform and then a rule, with the parameters of both and `scale`.

    Args:
        module: the `__name__` of the file, the last part of which is the method's name; its docstring is the method's.
        transform, rule: their names.
        source: as of a rule.
        settled: parameters of either that the method does not leave open.
    """
    first, second = find_transform(transform), rules.find(rule)
    assert not set(first.parameters) & set(second.parameters)

    def build(*, scale: float, **parameters: Any) -> Pipeline:
        every = {**parameters, **settled}
        ours, theirs = ({name: every[name] for name in spec.parameters} for spec in (first, second))
        return Pipeline((use_transform(first, **ours),), use_rule(second, **theirs), scale)

    build.__module__ = module
    own = {**first.parameters, **second.parameters, **parameters_of(_scaled)}
    left = {name: parameter for name, parameter in own.items() if name not in settled}
    return _declared(MethodSpec(module.rpartition(".")[2], build, source, left))


def _declared(spec: MethodSpec) -> MethodSpec:
    _methods.declare(spec.name, spec, spec.function.__module__)
    return spec


VECTORS = ("gram", "stack", "matrix", "base")


def on_vectors(spec: RuleSpec) -> bool:
    """Whether the rule needs nothing but task vectors, so that it can merge."""
    return set(spec.needs) <= set(VECTORS)


def find_method(name: str) -> MethodSpec:
    """The method called `name`: a named one, or a rule on task vectors; UnknownName with the nearest match."""
    if name in _methods:
        return _methods.find(name)
    if name in rules.rule_names():
        return _rule_as_method(rules.find(name))
    raise UnknownName("merge method", name, [*method_names(), *LEARNED])


def method_names() -> list[str]:
    """Every name that `find_method` knows: the named methods, then the rules on task vectors."""
    from_rules = [name for name in rules.rule_names() if on_vectors(rules.find(name))]
    return [*_methods.names(), *(name for name in from_rules if name not in _methods)]


def _rule_as_method(spec: RuleSpec) -> MethodSpec:
    """A pipeline of the rule alone, with `scale`, and `groups` for a rule on Gram matrices."""
    own = parameters_of(_grouped if spec.needs == ("gram",) else _scaled)
    own = {name: parameter for name, parameter in own.items() if name not in spec.parameters}
    if "groups" in own:
        own["groups"] = replace(own["groups"], default=spec.groups)

    def build(**parameters: Any) -> Pipeline:
        chosen = {name: parameters.pop(name) for name in own}
        return Pipeline((), use_rule(spec, **parameters), **chosen)

    build.__module__ = spec.function.__module__
    return MethodSpec(spec.name, build, spec.source, {**spec.parameters, **own})


def _scaled(*, scale: Annotated[float, Interval()] = 1.0) -> None: ...


def _grouped(*, scale: Annotated[float, Interval()] = 1.0, groups: Annotated[str, Choice(*SCOPES)] = "all") -> None: ...


assert len({*RULES, *METHODS, *LEARNED}) == len(RULES) + len(METHODS) + len(LEARNED), "a name has one meaning"
