"""A rule with its parameters, its state and its place in the stream of noise: what a loop or a merge calls."""

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, get_type_hints

import torch
from torch import Tensor

from polytask.core.blockwise import in_blocks
from polytask.core.constraints import PerTask, TaskNames, check_parameters, named_by
from polytask.core.errors import BadValue, CheckpointError, NotFinite, UnknownName
from polytask.core.noise import Noise
from polytask.core.rules import BadRow, RuleSpec, find

_SEEN = {
    "losses": "loss",
    "gram": "vector",
    "stack": "vector",
    "matrix": "vector",
    "base": "base",
    "counts": "number of labels",
    "validation": "validation loss",
}


class Rule:
    """Calls a rule's pure function with the state of the present tasks and keeps the state that comes back.

    Args:
        name: a registered rule, or its spec.
        tasks: every task that may ever be present, in order.
        seed: of the rule's noise.
        parameters: of the rule; checked against its constraints.
    """

    def __init__(self, name: str | RuleSpec, tasks: Sequence[str], *, seed: int = 0, **parameters: Any) -> None:
        self.spec = find(name) if isinstance(name, str) else name
        self.tasks = list(tasks)
        where = f"rule {self.spec.name!r}"
        self.parameters = check_parameters(self.spec.parameters, parameters, where)
        self._per_task = {
            name: about.constraint.numbers(name, self.parameters[name], about.default, self.tasks, where)
            for name, about in self.spec.parameters.items()
            if isinstance(about.constraint, PerTask)
        }
        for name, about in self.spec.parameters.items():
            for task in (self.parameters[name] or ()) if isinstance(about.constraint, TaskNames) else ():
                if task not in self.tasks:
                    raise UnknownName("task", task, self.tasks, f"{where}, {name}")
        self.seed = seed
        self.step = 0
        init = self.spec.init
        every = self._parameters(torch.arange(len(self.tasks)))
        self.state = init(len(self.tasks), **named_by(init, every)) if init else None

    def __call__(
        self, present: Sequence[str], *inputs: Any, priority: Tensor | None = None, keys: Sequence[str] = ()
    ) -> Any:
        """The rule's output for the present tasks; `inputs` in the order of `spec.needs`, rows in that of `present`.

        A procedure has one input, the session.

        The step counts when `advance` is called, so that an elementwise rule can be called for many parameters in one
        step (`keys` names the parameter in the noise).
        """
        self._check(present, inputs)
        if self.spec.otherwise is not None and inputs[0].dim() != 3:
            return self._otherwise(present, *inputs, keys=keys)
        index = self._index(present)
        extra = self._parameters(index)
        if self.spec.random:
            extra["noise"] = Noise(self.seed, "rule", self.spec.name, self.step, *keys)
        if self.spec.prefers:
            extra["priority"] = priority if priority is not None else torch.ones(len(present), dtype=torch.float64)
        if self.spec.statistic is not None or self.spec.granularity == "row":
            return self._called(present, partial(in_blocks, self.spec), *inputs, **extra)
        if self.state is None:
            return self._called(present, self.spec.function, *inputs, **extra)
        output, state = self._called(present, self.spec.function, *inputs, self._part(present, index), **extra)
        self._keep(present, index, state)
        return output

    @property
    def looks_again(self) -> bool:
        """Whether `after_step` has something to see."""
        return self.spec.looks_again(self.parameters)

    def advance(self) -> None:
        """Counts a step."""
        self.step += 1

    def after_step(self, present: Sequence[str], losses: Tensor) -> None:
        """Shows the rule the present tasks' losses after the optimiser's step, if it declares that it looks at them."""
        if self.spec.after_step is not None and self.looks_again:
            index = self._index(present)
            chosen = named_by(self.spec.after_step, self._parameters(index))
            part = self._part(present, index)
            self._keep(present, index, self._called(present, self.spec.after_step, part, losses, **chosen))

    def after_epoch(self) -> None:
        if self.spec.after_epoch is not None:
            every = torch.arange(len(self.tasks))
            self.state = self.spec.after_epoch(self.state, **named_by(self.spec.after_epoch, self._parameters(every)))

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next call depends on beyond the constructor's arguments; tensors and ints."""
        values = {} if self.state is None else {f"state.{key}": value.clone() for key, value in _flat(self.state)}
        return {"step": self.step, **values}

    def load_state_dict(self, values: dict[str, Any]) -> None:
        wanted = {"step"} | ({f"state.{key}" for key, _ in _flat(self.state)} if self.state is not None else set())
        if wanted != set(values):
            raise CheckpointError(
                f"rule {self.spec.name!r}: the saved state has {sorted(values)}, expected {sorted(wanted)}"
            )
        self.step = int(values["step"])
        if self.state is not None:
            self.state = _filled(self.state, values, "state.")

    def _part(self, present: Sequence[str], index: Tensor) -> Any:
        """The state as the function sees it; copied only where tasks are absent."""
        return self.state if list(present) == self.tasks else _taken(self.state, index)

    def _keep(self, present: Sequence[str], index: Tensor, state: Any) -> None:
        self.state = state if list(present) == self.tasks else _put(self.state, state, index)

    def _parameters(self, index: Tensor) -> dict[str, Any]:
        """What the function is given: those with a number a task as the present tasks' numbers."""
        return {**self.parameters, **{name: numbers[index] for name, numbers in self._per_task.items()}}

    def _otherwise(self, present: Sequence[str], *inputs: Tensor, keys: Sequence[str]) -> Tensor:
        """What the rule declares for vectors that are no matrices, with those parameters that both have."""
        assert self.spec.otherwise is not None
        spec = find(self.spec.otherwise)
        common = {name: value for name, value in self.parameters.items() if name in spec.parameters}
        rule = Rule(spec, self.tasks, seed=self.seed, **common)
        rule.step = self.step
        return rule(present, *inputs[: len(spec.needs)], keys=keys)

    def _called(self, present: Sequence[str], function: Callable[..., Any], *inputs: Any, **extra: Any) -> Any:
        try:
            return function(*inputs, **extra)
        except BadRow as bad:
            what = f"{bad.what} of task {present[bad.row]!r}"
            raise BadValue(what, bad.found, bad.allowed, f"rule {self.spec.name!r}") from None

    def _index(self, present: Sequence[str]) -> Tensor:
        for task in present:
            if task not in self.tasks:
                raise UnknownName("task", task, self.tasks, f"rule {self.spec.name!r}")
        return torch.tensor([self.tasks.index(task) for task in present], dtype=torch.int64)

    def _check(self, present: Sequence[str], inputs: Sequence[Any]) -> None:
        """One clear error for inputs of the wrong shape, or that are not finite."""
        where = f"rule {self.spec.name!r}"
        self.spec.check_number(len(present))
        if self.spec.form == "procedure":
            return
        for need, value in zip(self.spec.needs, inputs, strict=True):
            tasks = len(present)
            if need == "base":
                continue
            of_task = value.shape[1:] if need in ("stack", "matrix") else ()
            wanted = (tasks, tasks) if need == "gram" else (tasks, *of_task)
            if tuple(value.shape) != wanted:
                allowed = f"{wanted}, for tasks {', '.join(present)}"
                raise BadValue(f"the shape of {need}", tuple(value.shape), allowed, where)
            usable = value.isfinite() | value.isnan() if need == "validation" else value.isfinite()
            if not bool(usable.all()):
                worst = int((~usable).view(tasks, -1).sum(1).argmax())  # G's own row has the most
                raise NotFinite(f"{where}: the {_SEEN[need]} of task {present[worst]!r} is not finite")


def _task_axes(hint: Any) -> list[int]:
    """Axes of a state tensor that run over tasks, from its annotation `Float[Tensor, "T ..."]`."""
    return [axis for axis, name in enumerate(getattr(hint, "dim_str", "").split()) if name == "T"]


def _fields(state: Any) -> list[tuple[str, Any, Any]]:
    hints = _hints(type(state))
    return [(name, getattr(state, name), hints[name]) for name in state._fields]


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _taken(state: Any, index: Tensor) -> Any:
    """The state of the tasks `index` only."""
    values = {}
    for name, value, hint in _fields(state):
        if hasattr(value, "_fields"):
            values[name] = _taken(value, index)
            continue
        for axis in _task_axes(hint):
            value = value.index_select(axis, index)
        values[name] = value
    return type(state)(**values)


def _put(state: Any, part: Any, index: Tensor) -> Any:
    """The state with the entries of the tasks `index` replaced; fields without a task axis are taken from `part`."""
    values = {}
    for name, value, hint in _fields(state):
        new, axes = getattr(part, name), _task_axes(hint)
        if hasattr(value, "_fields"):
            values[name] = _put(value, new, index)
        elif axes:
            where = torch.meshgrid(
                *[index if axis in axes else torch.arange(n) for axis, n in enumerate(value.shape)], indexing="ij"
            )
            values[name] = value.index_put(where, new.to(value.dtype))
        else:
            values[name] = new
    return type(state)(**values)


def _flat(state: Any, prefix: str = "") -> list[tuple[str, Tensor]]:
    flat = []
    for name, value, _ in _fields(state):
        flat += _flat(value, f"{prefix}{name}.") if hasattr(value, "_fields") else [(f"{prefix}{name}", value)]
    return flat


def _filled(state: Any, values: dict[str, Any], prefix: str) -> Any:
    filled = {}
    for name, value, _ in _fields(state):
        if hasattr(value, "_fields"):
            filled[name] = _filled(value, values, f"{prefix}{name}.")
            continue
        saved = values[f"{prefix}{name}"]
        if saved.shape != value.shape:
            raise CheckpointError(f"rule state {name!r} has shape {tuple(saved.shape)}, expected {tuple(value.shape)}")
        filled[name] = saved.clone()
    return type(state)(**filled)
