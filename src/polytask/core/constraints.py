"""What a parameter may be, declared once: it drives the check, the error, the listing and the tests' bad values.

def rule(gram, *, decay: Annotated[float, Interval(0, 1, open="right")] = 0.9): ...
"""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from types import UnionType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import torch
from torch import Tensor

from polytask.core.errors import BadValue, UnknownName


@dataclass(frozen=True)
class Interval:
    """Numbers from `low` to `high`; an end named in `open` is excluded, an infinite end always is."""

    low: float = -math.inf
    high: float = math.inf
    open: Literal["", "left", "right", "both"] = ""

    def allows(self, value: object) -> bool:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            return False
        above = value > self.low if self.open in ("left", "both") else value >= self.low
        below = value < self.high if self.open in ("right", "both") else value <= self.high
        return above and below

    def __str__(self) -> str:
        left = "(" if self.open in ("left", "both") or self.low == -math.inf else "["
        right = ")" if self.open in ("right", "both") or self.high == math.inf else "]"
        return f"a number in {left}{self.low:g}, {self.high:g}{right}"

    def bad_values(self) -> list[object]:
        """Values that a check must refuse, for tests."""
        bad: list[object] = [math.nan, math.inf, "x"]
        if self.low > -math.inf:
            bad += [self.low - 1] + ([self.low] if self.open in ("left", "both") else [])
        if self.high < math.inf:
            bad += [self.high + 1] + ([self.high] if self.open in ("right", "both") else [])
        return bad


@dataclass(frozen=True)
class Choice:
    """One of a few names."""

    names: tuple[str, ...]

    def __init__(self, *names: str) -> None:
        object.__setattr__(self, "names", names)

    def allows(self, value: object) -> bool:
        return value in self.names

    def __str__(self) -> str:
        return " | ".join(self.names)

    def bad_values(self) -> list[object]:
        return ["no such choice", 3]


@dataclass(frozen=True)
class PerTask:
    """A number a task: one number for all of them, or {task: number}; a task that is not named has the default.

    The function sees float64 [T], the present tasks' numbers; a default of None is NaN there: the task has none.
    """

    each: Interval

    def allows(self, value: object) -> bool:
        if isinstance(value, Mapping):
            return all(isinstance(task, str) and self.each.allows(number) for task, number in value.items())
        return value is None or self.each.allows(value)

    def __str__(self) -> str:
        return f"{self.each}, or {{task: number}}"

    def bad_values(self) -> list[object]:
        return [*self.each.bad_values(), *({"a": bad} for bad in self.each.bad_values()), {3: self.each.low}]

    def numbers(self, name: str, value: Any, default: Any, tasks: Sequence[str], where: str) -> Tensor:
        """The value for each of `tasks`; UnknownName if it names another one."""
        given = value if isinstance(value, Mapping) else dict.fromkeys(tasks, value)
        for task in given:
            if task not in tasks:
                raise UnknownName("task", task, tasks, f"{where}, {name}")
        found = [given.get(task, default) for task in tasks]
        return torch.tensor([math.nan if number is None else number for number in found], dtype=torch.float64)


@dataclass(frozen=True)
class TaskNames:
    """Some of the tasks, by name; None where nobody chose."""

    def allows(self, value: object) -> bool:
        named = isinstance(value, list | tuple) and bool(value) and all(isinstance(task, str) for task in value)
        return value is None or named

    def __str__(self) -> str:
        return "names of tasks"

    def bad_values(self) -> list[object]:
        return ["a", [], [3], 3]


@dataclass(frozen=True)
class RuleChoice:
    """Another rule of the combine form: its name, or {kind: name, and its parameters}."""

    def allows(self, value: object) -> bool:
        return isinstance(value, str) or (isinstance(value, Mapping) and isinstance(value.get("kind"), str))

    def __str__(self) -> str:
        return "the name of a rule, or {kind: name, and its parameters}"

    def bad_values(self) -> list[object]:
        return [3, {}, {"kind": 3}, None]


@dataclass(frozen=True)
class Beginning:
    """What the names of some parameters of the model begin with, up to a dot."""

    def allows(self, value: object) -> bool:
        return isinstance(value, str) and bool(value.strip())

    def __str__(self) -> str:
        return "the beginning of parameters' names"

    def bad_values(self) -> list[object]:
        return ["", 3]


@dataclass(frozen=True)
class Folder:
    """A directory where something is kept, or none; a relative one starts from where the program runs."""

    def allows(self, value: object) -> bool:
        return value is None or (isinstance(value, str) and bool(value.strip()))

    def __str__(self) -> str:
        return "a folder"

    def bad_values(self) -> list[object]:
        return ["", 3]


@dataclass(frozen=True)
class Patterns:
    """What names of modules look like (`*.mlp`), any of these; None where nobody chose."""

    def allows(self, value: object) -> bool:
        if value is None:
            return True
        return isinstance(value, list | tuple) and bool(value) and all(isinstance(each, str) and each for each in value)

    def __str__(self) -> str:
        return "a list of patterns of modules' names"

    def bad_values(self) -> list[object]:
        return ["*.mlp", [], [""], [3], 3]


@dataclass(frozen=True)
class TaskName:
    """The name of a task; none is the first. The function sees float64 [T], 1 for that task, if it is present."""

    def allows(self, value: object) -> bool:
        return value is None or (isinstance(value, str) and value != "")

    def __str__(self) -> str:
        return "a task's name"

    def bad_values(self) -> list[object]:
        return [3, "", "no such task"]

    def numbers(self, name: str, value: Any, default: Any, tasks: Sequence[str], where: str) -> Tensor:
        """1 for the named task, 0 for the others; UnknownName if there is no such task."""
        chosen = tasks[0] if value is None and tasks else value
        if value is not None and value not in tasks:
            raise UnknownName("task", value, tasks, f"{where}, {name}")
        return torch.tensor([float(task == chosen) for task in tasks], dtype=torch.float64)


Constraint = Interval | Choice | PerTask | TaskName | TaskNames | RuleChoice | Beginning | Folder | Patterns


@dataclass(frozen=True)
class Parameter:
    """A parameter of a rule: its type, default and constraint."""

    name: str
    type: Any
    default: Any
    constraint: Constraint | None

    def checked(self, value: Any, where: str) -> Any:
        """The value as this parameter's type; BadValue if it is not allowed."""
        if self.constraint is not None and not self.constraint.allows(value):
            raise BadValue(self.name, value, str(self.constraint), where)
        if isinstance(self.constraint, PerTask | TaskName | TaskNames | RuleChoice | Folder | Patterns):
            return value
        if self.type is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        if isinstance(self._plain, type | UnionType) and not isinstance(value, self._plain):
            raise BadValue(self.name, value, self._of_type, where)
        return value

    @property
    def allowed(self) -> str:
        """What it may be, in words."""
        return self._of_type if self.constraint is None else str(self.constraint)

    @property
    def _plain(self) -> Any:
        return self.type if isinstance(self.type, UnionType) else get_origin(self.type) or self.type

    @property
    def _of_type(self) -> str:
        known = {bool: "true or false", str: "a text"}
        return known.get(self._plain, f"a value of type {getattr(self._plain, '__name__', self._plain)}")

    def __str__(self) -> str:
        allowed = f" ({self.constraint})" if self.constraint else ""
        return f"{self.name}: {getattr(self.type, '__name__', self.type)} = {self.default}{allowed}"


def parameters_of(function: Callable[..., Any], *, skip: tuple[str, ...] = ()) -> dict[str, Parameter]:
    """The keyword-only parameters of a function, with the constraints in their annotations."""
    hints = get_type_hints(function, include_extras=True)
    found = {}
    for name, argument in inspect.signature(function).parameters.items():
        if argument.kind is not inspect.Parameter.KEYWORD_ONLY or name in skip:
            continue
        hint, constraint = hints.get(name, Any), None
        if get_origin(hint) is Annotated:
            hint, *notes = get_args(hint)
            constraint = next((note for note in notes if isinstance(note, Constraint)), None)
        assert argument.default is not inspect.Parameter.empty, f"{name} of {function} needs a default"
        found[name] = Parameter(name, hint, argument.default, constraint)
    return found


def check_parameters(declared: dict[str, Parameter], given: dict[str, Any], where: str) -> dict[str, Any]:
    """Every declared parameter with its given or default value; an unknown or bad one is an error."""
    for name in given:
        if name not in declared:
            raise UnknownName("parameter", name, declared, where)
    return {
        name: parameter.checked(given[name], where) if name in given else parameter.default
        for name, parameter in declared.items()
    }


def named_by(function: Callable[..., Any], parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Those parameters that the function takes."""
    return {name: parameters[name] for name in _arguments(function) if name in parameters}


@cache
def _arguments(function: Callable[..., Any]) -> tuple[str, ...]:
    return tuple(inspect.signature(function).parameters)
