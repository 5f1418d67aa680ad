"""What is timed: each method as a mergekit file, which both tools read, and the goal of the ratio."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from benchmarks.merging.models import FINE_TUNES


@dataclass(frozen=True)
class Method:
    """A merge.

    Attributes:
        name: mergekit's merge_method.
        goal: the most that polytask may take of mergekit's time.
        base: whether it has a base.
        parameters: of every model.
        options: of the whole merge.
    """

    name: str
    goal: float
    base: bool = True
    parameters: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)

    def mergekit(self, folder: Path) -> str:
        """The file that both tools are given."""
        models = [{"model": str(folder / name), "parameters": self.parameters} for name in FINE_TUNES]
        base = {"base_model": str(folder / "base")} if self.base else {}
        content = {"merge_method": self.name, **base, "models": models, "dtype": "bfloat16"}
        return yaml.safe_dump(content | ({"parameters": self.options} if self.options else {}), sort_keys=False)


METHODS = (
    Method("linear", 0.5, base=False, parameters={"weight": 1.0}),
    Method("task_arithmetic", 0.5, parameters={"weight": 0.4}),
    Method("ties", 0.1, parameters={"weight": 1.0, "density": 0.2}),
    Method("breadcrumbs", 0.1, parameters={"weight": 0.4, "density": 0.9, "gamma": 0.01}),
    Method("della", 0.1, parameters={"weight": 0.4, "density": 0.5, "epsilon": 0.1}),
    Method("sce", 0.1, options={"select_topk": 0.2}),
    Method("dare_ties", 1 / 6, parameters={"weight": 1.0, "density": 0.5}),
    Method("model_stock", 1 / 6),
)

# Polytask alone, as plans of its own: what mergekit lacks.
OWN: dict[str, dict[str, Any]] = {
    "ties over the whole model": {"kind": "ties", "density": 0.2},
    "mgda over the whole model": {"kind": "mgda", "groups": "all"},
}


def own_plan(rule: dict[str, Any], folder: Path, tasks: Sequence[str] = FINE_TUNES) -> str:
    """A plan of polytask's with this rule."""
    models = {name: str(folder / name) for name in tasks}
    return yaml.safe_dump({"version": 1, "base": str(folder / "base"), "tasks": models, "rule": rule}, sort_keys=False)
