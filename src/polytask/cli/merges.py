"""The merge methods and transforms in `polytask rules`: what is done with task vectors of checkpoints."""

from typing import Any

from polytask.core.names import METHODS
from polytask.merging.contract import MethodSpec, TransformSpec, find_method, find_transform, transform_names
from polytask.merging.learning import LearnedSpec, find_learned, learned_names

HEADING = "Merges of checkpoints put together from transforms and a rule; any rule on vectors merges too:"
TRANSFORMS = "Transforms of task vectors, before any rule of a merge:"
LEARNED = "Merges that read a little data of each task:"


Spec = MethodSpec | TransformSpec | LearnedSpec
FORMS: dict[type, str] = {MethodSpec: "merge method", TransformSpec: "transform", LearnedSpec: "learned merge"}


def methods() -> list[Spec]:
    return [find_method(name) for name in METHODS]


def transforms() -> list[Spec]:
    return [find_transform(name) for name in transform_names()]


def learned() -> list[Spec]:
    return [find_learned(name) for name in learned_names()]


def described(spec: Spec) -> dict[str, Any]:
    """What the JSON listing says of one."""
    found = {
        "name": spec.name,
        "form": FORMS[type(spec)],
        "summary": spec.summary,
        "source": spec.source,
        "parameters": {
            parameter: {"default": about.default, "allowed": about.allowed}
            for parameter, about in spec.parameters.items()
        },
    }
    if isinstance(spec, LearnedSpec):
        return {**found, "labels": spec.reads}
    return {**found, "steps": _steps(spec)} if isinstance(spec, MethodSpec) else found


def _steps(spec: MethodSpec) -> list[str]:
    """The transforms, then the rule."""
    return [step.spec.name for step in spec().steps]


def listed(specs: list[Spec]) -> list[tuple[str, str]]:
    """(name, what it does and its parameters) of each."""
    rows = []
    for spec in specs:
        parameters = f"parameters {', '.join(spec.parameters)}; " if spec.parameters else ""
        reads = f"reads labels: {spec.reads}; " if isinstance(spec, LearnedSpec) else ""
        about = spec.summary.partition(": ")[2] or spec.summary
        rows.append((spec.name, f"{about}\n{reads}{parameters}{spec.source}"))
    return rows


def fields(spec: Spec) -> list[tuple[str, str]]:
    """(heading, text) of one in full, after the fields of its docstring."""
    about = [f"{key}: {each.allowed}; default {each.default!r}" for key, each in spec.parameters.items()]
    rows = [("Parameters", "\n".join(about) or "none")]
    if isinstance(spec, LearnedSpec):
        plan = f"rule: {spec.name}, data: {{split: valid, rows: 256}}"
        return [("Reads labels", spec.reads), *rows, ("In a plan", plan)]
    if not isinstance(spec, MethodSpec):
        return [*rows, ("In a plan", f"transforms: [{spec.name}]")]
    command = f"polytask merge --rule {spec.name} --base BASE --task NAME=MODEL --out DIR"
    return [("Is", ", then ".join(_steps(spec))), *rows, ("In a plan", f"rule: {spec.name}"), ("Without one", command)]
