"""Whether a balancer was given what its rule and its engine need, and nothing that they would not read."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from polytask.balancing import distribution
from polytask.balancing.engine import Engine
from polytask.balancing.session import VALIDATION, Forward
from polytask.balancing.step_losses import StepLosses, step_losses
from polytask.core.errors import Inconsistent, MissingInput
from polytask.core.rules import RuleSpec


def check_read(engine: Engine, engine_name: str, given: Mapping[str, Any]) -> None:
    """An error if the engine needs an argument of `backward` and it is missing, or the other way round."""
    for name, value in given.items():
        # a process may have no row of this step
        if engine.reads == name and not _is_given(value) and not distribution.active():
            raise MissingInput(f"engine {name!r} needs backward(losses, model, {name}=...)")
        if engine.reads != name and value is not None:
            raise Inconsistent(f"{name}= is read by engine {name!r}, not by {engine_name!r}")


def require(
    spec: RuleSpec, applied: RuleSpec, *, model: Any, forward: Any, counts: Any, scaler: Any, shared: Any
) -> None:
    """MissingInput for what a rule, or the one that it applies, lacks; Inconsistent for what it cannot use."""
    where, needs = f"rule {spec.name!r}", dict.fromkeys([*spec.needs, *applied.needs])
    if model is None and not spec.weighs_losses:
        raise MissingInput(f"{where} reads gradients and needs the model: backward(losses, model)")
    if model is None and distribution.active():
        raise MissingInput("under torch.distributed backward needs the model: backward(losses, model)")
    if forward is None and ("forward" in needs or "validation" in needs):
        what = "the losses on a validation batch" if "validation" in needs else "to compute the losses again"
        raise MissingInput(f"{where} needs {what}: backward(losses, model, forward=...)")
    if counts is None and "counts" in needs:
        raise MissingInput(f"{where} needs the number of labels of each task: counts=...")
    if shared is not None and spec.weighs_losses:
        raise Inconsistent(f"{where} weighs the losses, for every parameter that they reach: leave shared= out")
    if scaler is not None and spec.form == "procedure":
        raise Inconsistent(f"{where} is a procedure, whose own passes no GradScaler scales: train in bf16 or float32")


def more_inputs(
    applied: RuleSpec, found: StepLosses, forward: Forward | None, tasks: Sequence[str] | None, step: int
) -> dict[str, Tensor]:
    """The counts and validation losses of the present tasks, where the rule that is applied needs them."""
    more: dict[str, Tensor] = {}
    if "counts" in applied.needs:
        more["counts"] = found.counts
    if "validation" in applied.needs and applied.form == "combine":
        assert forward is not None  # it was required
        with torch.no_grad():
            seen = step_losses(forward(None, VALIDATION), None, tasks, {})
        seen.refuse_infinite(step)
        values = dict(zip(seen.tasks, seen.values.tolist(), strict=True))
        more["validation"] = torch.tensor([values.get(task, math.nan) for task in found.tasks], dtype=torch.float64)
    return more


def _is_given(value: Any) -> bool:
    return isinstance(value, Tensor) or bool(value)
