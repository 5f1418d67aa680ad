"""What an engine is: how a rule on gradients gets to see them, and how its result becomes gradients of parameters."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from polytask.balancing.accumulation import infinite
from polytask.balancing.batches import Batches
from polytask.balancing.group_rules import GroupRules
from polytask.core.errors import BadValue, NotFinite
from polytask.core.rules import RuleSpec


@dataclass(frozen=True)
class Step:
    """What an engine is given for one step.

    Attributes:
        number: of the step.
        tasks: those present, over all processes.
        values: their losses, float64 [T].
        losses: task -> this process's part of its loss, scaled as the GradScaler wants it.
        priority: of each task, float64 [T].
        named: the model's parameters.
        factor: the GradScaler's; None without one.
        shared, representation: as the caller of `backward` gave them.
        subset: task -> its loss on a part of the rows, scaled likewise, for engine "subset".
        more: counts and validation losses, float64 [T], where the rule needs them.
        batches: the independent batches that `losses` are the means of, for a rule that needs some.
    """

    number: int
    tasks: list[str]
    values: Tensor
    losses: Mapping[str, Tensor]
    priority: Tensor
    named: Mapping[str, Tensor]
    factor: float | None = None
    shared: Sequence[str] | None = None
    representation: Sequence[Tensor] | None = None
    subset: Mapping[str, Tensor] | None = None
    more: Mapping[str, Tensor] = field(default_factory=dict)
    batches: Batches | None = None

    @property
    def trainable(self) -> dict[str, Tensor]:
        return {name: parameter for name, parameter in self.named.items() if parameter.requires_grad}

    def overflows(self, bad: Iterable[str]) -> bool:
        """Whether something is not finite and a GradScaler will see it; without one, NotFinite names the first."""
        first = next(iter(bad), None)
        if first is not None and self.factor is None:
            raise NotFinite(f"the gradient of {first} is not finite at step {self.number}")
        return first is not None

    def infinite_tasks(self, gram: Tensor) -> list[str]:
        """The tasks whose own squared norm is not finite."""
        return [f"task {t!r}" for t, square in zip(self.tasks, gram.diagonal(), strict=True) if not square.isfinite()]


def infinite_parameters(grads: Mapping[str, Tensor]) -> list[str]:
    return [repr(name) for name in infinite(grads)]


@dataclass(frozen=True)
class Combined:
    """What an engine makes of a step.

    Attributes:
        grads: (parameter, its gradient, which nobody else holds), to be added to `.grad`.
        weights: group -> float64 [T].
        route: group -> how its part of G was obtained.
        shared: names of the parameters that were balanced.
        gram: float64 [T, T] over all groups; None where none was computed.
        skipped: the gradients overflowed under a GradScaler.
        measured: what else was measured -> float64 [T].
    """

    grads: list[tuple[Tensor, Tensor]]
    weights: dict[str, Tensor]
    route: dict[str, str]
    shared: list[str]
    gram: Tensor | None = None
    skipped: bool = field(default=False)
    measured: dict[str, Tensor] = field(default_factory=dict)


class Engine:
    """How per-task gradients are obtained; options are keyword arguments with a default and a constraint.

    Attributes:
        reads: the argument of `backward` that this engine needs, if any.
        chosen: the engine that a timing has found fastest, where one was asked for and has ended.
    """

    reads: str | None = None
    chosen: str | None = None

    def check(self, spec: RuleSpec, groups: str, scale: str) -> None:
        """BadValue if the rule or an option of the balancer cannot be served."""

    def combine(self, step: Step, rules: GroupRules) -> Combined:
        """Writes nothing into .grad; what it raises leaves its own state as it was."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """What the next step depends on."""
        return {}

    def load_state_dict(self, values: Mapping[str, Any]) -> None:
        pass


def reads_gradients(spec: RuleSpec) -> bool:
    """Whether a rule on gradients needs more than their inner products."""
    return spec.returns != "weights" or spec.tracker is not None


def refuse_without_weights(engine: str, spec: RuleSpec, groups: str, scale: str) -> None:
    """BadValue unless the rule gives one weight a task, which an engine can apply in a backward pass of its own."""
    if spec.returns != "weights":
        raise BadValue("engine", engine, f"exact | representation: rule {spec.name!r} has no weights to keep")
    if groups != "all":
        raise BadValue("groups", groups, f"all: engine {engine!r} keeps one weight a task")
    if scale == "unit":
        allowed = "published | sum | mean: weights do not keep the norm of other gradients than they came from"
        raise BadValue("scale", scale, allowed)


def summed_gram(grams: Mapping[str, Tensor]) -> Tensor:
    return torch.stack(list(grams.values())).sum(0)
