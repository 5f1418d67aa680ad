"""Which settings each method tries: as many as every other, the defaults among them.

A method without a density tries four lengths of its vector (merged minus base), one with a density three lengths, and
the best of them at another density. Lengths are applied to the merged weights, so they are there for methods without a
`scale` too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from polytask.core.errors import BadValue
from polytask.core.names import LEARNED, METHODS, RULES
from polytask.merging.contract import find_method, method_names
from polytask.merging.learning import find_learned

SETTINGS = 4
SCALES = (1.0, 0.3, 2.0, 0.5)
OTHER_DENSITY = {True: 0.5, False: 0.2}
"""Beside the method's default density, by whether that is below a half."""

STORES = ("tall_masks", "emr", "sparse")

MASK_SCALES = (0.4, 0.2, 0.6)
"""Of a store of TALL-masks; each task takes its own best, as in the paper."""

ROOMS = ("merging", "balancing")
"""Where methods come from: an experiment may name a room instead of each of its methods."""


@dataclass(frozen=True)
class Method:
    """A merge as an experiment names it.

    Attributes:
        kind: its name in plans.
        parameters: beside its defaults.
        data: of the plan, for one that reads some.
    """

    kind: str
    parameters: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] | None = None

    @property
    def name(self) -> str:
        """Of its row: `adamerging steps=40`."""
        return " ".join([self.kind, *(f"{key}={value}" for key, value in self.parameters.items())])

    def check(self, tasks: Sequence[str]) -> None:
        """BadValue, UnknownName: no such method or parameter, or one that merges another number of models."""
        if self.kind in LEARNED:
            find_learned(self.kind).checked(self.parameters)
        else:
            pipeline = find_method(self.kind)(**self.parameters)
            pipeline.check_tasks(tasks)
            pipeline.check_number(len(tasks))

    def other_parameters(self) -> dict[str, Any]:
        """What is tried beside lengths of the vector; empty for a method without a density."""
        density = None if self.kind in LEARNED else find_method(self.kind).parameters.get("density")
        return {} if density is None else {"density": OTHER_DENSITY[density.default < 0.5]}


def methods_for(tasks: Sequence[str], named: Sequence[str | Mapping[str, Any]]) -> tuple[list[Method], dict[str, str]]:
    """The methods that merge these tasks' models, and those that do not: name -> why.

    Args:
        tasks: the models'.
        named: methods, as in a plan's `rule` ({kind, parameters ...}; `data` is the plan's), or rooms.
    """
    chosen, left_out = [], {}
    for method in [method for part in named for method in _methods(part)]:
        try:
            method.check(tasks)
        except BadValue as error:
            left_out[method.name] = str(error)
        else:
            chosen.append(method)
    return chosen, left_out


def _methods(part: str | Mapping[str, Any]) -> list[Method]:
    if isinstance(part, str):
        return [Method(name) for name in (_of_room(part) if part in ROOMS else [part])]
    own = {key: value for key, value in part.items() if key not in ("kind", "data")}
    return [Method(part["kind"], own, part.get("data"))]


def _of_room(room: str) -> list[str]:
    return [name for name in method_names() if {**RULES, **METHODS}[name].startswith(f"polytask.{room}.")]
