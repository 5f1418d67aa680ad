"""The merge methods and transforms in `polytask rules`: what is done with task vectors of checkpoints."""

import inspect
from typing import Any

from polytask.core.names import METHODS
from polytask.merging.contract import MethodSpec, find_method, find_transform, transform_names

HEADING = "Merges of checkpoints put together from transforms and a rule; any rule on vectors merges too:"
TRANSFORMS = "Transforms of task vectors, before any rule of a merge:"


def names() -> list[str]:
    return [*METHODS, *transform_names()]


def find(name: str) -> Any:
    return find_method(name) if name in METHODS else find_transform(name)


def described(name: str) -> dict[str, Any]:
    """What the JSON listing says of one."""
    spec = find(name)
    found = {
        "name": name,
        "form": "merge method" if isinstance(spec, MethodSpec) else "transform",
        "summary": spec.summary,
        "source": spec.source,
        "parameters": {
            parameter: {"default": about.default, "allowed": str(about.constraint)}
            for parameter, about in spec.parameters.items()
        },
    }
    return {**found, "steps": _steps(spec)} if isinstance(spec, MethodSpec) else found


def _steps(spec: MethodSpec) -> list[str]:
    """The transforms, then the rule."""
    return [step.spec.name for step in spec().steps]


def listed(names: list[str]) -> list[tuple[str, str]]:
    """(name, what it does and its parameters) of each."""
    rows = []
    for name in names:
        spec = find(name)
        parameters = f"parameters {', '.join(spec.parameters)}; " if spec.parameters else ""
        rows.append((name, f"{spec.summary.partition(': ')[2] or spec.summary}\n{parameters}{spec.source}"))
    return rows


def documentation(name: str) -> str:
    """The docstring of its file."""
    return inspect.getdoc(inspect.getmodule(find(name).function)) or ""


def fields(name: str) -> list[tuple[str, str]]:
    """(heading, text) of one in full, after the fields of its docstring."""
    spec = find(name)
    about = [
        f"{key}: {each.constraint or each.type}; default {each.default!r}" for key, each in spec.parameters.items()
    ]
    rows = [("Parameters", "\n".join(about) or "none")]
    if not isinstance(spec, MethodSpec):
        return [*rows, ("In a plan", f"transforms: [{name}]")]
    command = f"polytask merge --rule {name} --base BASE --task NAME=MODEL --out DIR"
    return [("Is", ", then ".join(_steps(spec))), *rows, ("In a plan", f"rule: {name}"), ("Without one", command)]
