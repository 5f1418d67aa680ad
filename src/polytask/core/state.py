"""A rule with its parameters, its state and its place in the stream of noise: what a loop or a merge calls."""

import math
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, get_type_hints

import torch
from torch import Tensor

from polytask.core.blas import one_thread
from polytask.core.blockwise import in_blocks
from polytask.core.constraints import PerTask, TaskName, TaskNames, check_parameters, named_by
from polytask.core.errors import BadValue, CheckpointError, NotFinite, UnknownName
from polytask.core.noise import Noise
from polytask.core.rules import BadRow, RuleSpec, find

_SEEN = {"losses": "loss", "base": "base", "counts": "number of labels", "validation": "validation loss"}


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
        where = self._where
        self.parameters = check_parameters(self.spec.parameters, parameters, where)
        self._per_task = {
            name: about.constraint.numbers(name, self.parameters[name], about.default, self.tasks, where)
            for name, about in self.spec.parameters.items()
            if isinstance(about.constraint, PerTask | TaskName)
        }
        for name, about in self.spec.parameters.items():
            for task in (self.parameters[name] or ()) if isinstance(about.constraint, TaskNames) else ():
                if task not in self.tasks:
                    raise UnknownName("task", task, self.tasks, f"{where}, {name}")
        self.seed = seed
        self.step = 0
        init = self.spec.init
        every = self._parameters()
        self.state = init(len(self.tasks), **named_by(init, every)) if init else None
        self._memory: dict[str, Tensor] = {}  # parameter -> what the tracker remembers of it

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
        index = self._absent_index(present)
        extra = self._parameters(index)
        if self.spec.random:
            extra["noise"] = Noise(self.seed, "rule", self.spec.name, self.step, *keys)
        if self.spec.prefers:
            extra["priority"] = priority if priority is not None else torch.ones(len(present), dtype=torch.float64)
        if self.spec.statistic is not None or self.spec.granularity == "row":
            return self._called(present, partial(in_blocks, self.spec), *inputs, **extra)
        if self.state is None:
            return self._called(present, self.spec.function, *inputs, **extra)
        output, state = self._called(present, self.spec.function, *inputs, self._part(index), **extra)
        self._keep(index, state)
        return output

    def tracked(
        self, present: Sequence[str], name: str, stack: Tensor, *, losses: Tensor, norms: Tensor | None = None
    ) -> Tensor:
        """What the rule sees in place of the stack of parameter `name`; its tracker remembers the stack.

        Args:
            losses: of the present tasks, float64 [T].
            norms: lengths of the whole task vectors, float64 [T]; only if the tracker asks for them.
        """
        assert self.spec.tracker is not None
        index = self._absent_index(present)
        known = {**self._parameters(index), "losses": losses, "norms": norms, "state": self._part(index)}
        chosen = {keyword: known[keyword] for keyword in self.spec.tracker.keywords}
        memory = self._memory_of(name, stack)
        where = None if index is None else index.to(stack.device)
        part = memory if where is None else memory.index_select(0, where)
        seen, part = self._called(present, self.spec.tracker.function, stack, part, **chosen)
        self._memory[name] = part if where is None else memory.index_copy(0, where, part)
        return seen.to(stack.dtype)

    def _memory_of(self, name: str, stack: Tensor) -> Tensor:
        """At least single precision, since what is remembered is summed up over many steps."""
        dtype, shape = torch.promote_types(stack.dtype, torch.float32), (len(self.tasks), *stack.shape[1:])
        memory = self._memory.get(name)
        if memory is None:
            return torch.zeros(shape, dtype=dtype, device=stack.device)
        if memory.shape != shape:
            raise BadValue(f"the shape of {name!r}", shape, f"{tuple(memory.shape)}, as before", self._where)
        return memory.to(stack.device)

    @property
    def moment(self) -> tuple[Any, dict[str, Tensor]]:
        """All that a step changes, for `restore`: neither is changed in place."""
        return self.state, dict(self._memory)

    def restore(self, moment: tuple[Any, dict[str, Tensor]]) -> None:
        """As the rule was when `moment` gave this."""
        self.state, self._memory = moment[0], dict(moment[1])

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
            index = self._absent_index(present)
            chosen = named_by(self.spec.after_step, self._parameters(index))
            self._keep(index, self._called(present, self.spec.after_step, self._part(index), losses, **chosen))

    def after_epoch(self) -> None:
        if self.spec.after_epoch is not None:
            self.state = self.spec.after_epoch(self.state, **named_by(self.spec.after_epoch, self._parameters()))

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next call depends on beyond the constructor's arguments; tensors and ints."""
        values = {} if self.state is None else {f"state.{key}": value.clone() for key, value in _flat(self.state)}
        return {"step": self.step, **values, **{f"memory.{name}": kept.clone() for name, kept in self._memory.items()}}

    def load_state_dict(self, values: dict[str, Any]) -> None:
        wanted = {"step"} | ({f"state.{key}" for key, _ in _flat(self.state)} if self.state is not None else set())
        memory = set() if self.spec.tracker is None else {name for name in values if name.startswith("memory.")}
        if wanted != set(values) - memory:
            raise CheckpointError(f"{self._where}: the saved state has {sorted(values)}, expected {sorted(wanted)}")
        self._memory = {name.removeprefix("memory."): values[name].clone() for name in sorted(memory)}
        self.step = int(values["step"])
        if self.state is not None:
            self.state = _filled(self.state, values, "state.")

    @property
    def _where(self) -> str:
        return f"rule {self.spec.name!r}"

    def _part(self, index: Tensor | None) -> Any:
        """The state as the function sees it; copied only where tasks are absent."""
        return self.state if index is None else _taken(self.state, index)

    def _keep(self, index: Tensor | None, state: Any) -> None:
        self.state = state if index is None else _put(self.state, state, index)

    def _parameters(self, index: Tensor | None = None) -> dict[str, Any]:
        """What the function is given: those with a number a task as the present tasks' numbers."""
        numbers = {name: every if index is None else every[index] for name, every in self._per_task.items()}
        return {**self.parameters, **numbers}

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
            with one_thread(len(present)):
                return function(*inputs, **extra)
        except BadRow as bad:
            what = f"{bad.what} of task {present[bad.row]!r}"
            raise BadValue(what, bad.found, bad.allowed, self._where) from None

    def _absent_index(self, present: Sequence[str]) -> Tensor | None:
        """The places of the present tasks; None where no task is absent."""
        return None if list(present) == self.tasks else self._index(present)

    def _index(self, present: Sequence[str]) -> Tensor:
        for task in present:
            if task not in self.tasks:
                raise UnknownName("task", task, self.tasks, self._where)
        return torch.tensor([self.tasks.index(task) for task in present], dtype=torch.int64)

    def _check(self, present: Sequence[str], inputs: Sequence[Any]) -> None:
        """One clear error for inputs of the wrong shape, or that are not finite."""
        where = self._where
        self.spec.check_number(len(present))
        if self.spec.form == "procedure":
            return
        for need, value in zip(self.spec.needs, inputs, strict=True):
            tasks = len(present)
            if need == "base":
                continue
            of_task = value.shape[1:] if need in ("stack", "matrix") else ()
            wanted = (tasks, tasks) if need in ("gram", "cross_gram") else (tasks, *of_task)
            if tuple(value.shape) != wanted:
                allowed = f"{wanted}, for tasks {', '.join(present)}"
                raise BadValue(f"the shape of {need}", tuple(value.shape), allowed, where)
            if math.isfinite(value.sum().item()):  # one pass; finite numbers whose sum overflows are looked at again
                continue
            usable = value.isfinite() | value.isnan() if need == "validation" else value.isfinite()
            if not bool(usable.all()):
                bad = (~usable).view(tasks, -1)
                counted = bad.sum(1) + bad.sum(0) if need == "cross_gram" else bad.sum(1)
                worst = int(counted.argmax())  # G's own row has the most
                raise NotFinite(f"{where}: the {_SEEN.get(need, 'vector')} of task {present[worst]!r} is not finite")


def zeros(kind: type) -> Callable[[int], Any]:
    """A rule's `init` that gives a state of zeros; for kinds of state whose axes are all tasks."""

    def start(tasks: int) -> Any:
        values = {}
        for name, hint in _hints(kind).items():
            shape = [tasks] * len(_task_axes(hint))
            values[name] = zeros(hint)(tasks) if hasattr(hint, "_fields") else torch.zeros(shape, dtype=torch.float64)
        return kind(**values)

    return start


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
