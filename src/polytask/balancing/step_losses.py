"""The losses of a step, checked: which tasks are present, their values over all processes, this process's part."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from polytask.balancing import distribution
from polytask.core.errors import BadValue, NotFinite, UnknownName

Model = nn.Module | Mapping[str, Tensor] | Iterable[Tensor]


@dataclass(frozen=True)
class StepLosses:
    """Those of the tasks that any process has.

    Attributes:
        tasks: in the balancer's order.
        values: over all processes, float64 [T].
        local: task -> this process's part of its loss, with its graph.
        counts: labels behind each, over all processes, float64 [T]; 1 for each process where nobody counted.
    """

    tasks: list[str]
    values: Float[Tensor, "T"]
    local: Mapping[str, Tensor]
    counts: Float[Tensor, "T"]

    def refuse_infinite(self, step: int) -> None:
        for task, value in zip(self.tasks, self.values.tolist(), strict=True):
            if not math.isfinite(value):
                raise NotFinite(f"the loss of task {task!r} is {value} at step {step}")


def step_losses(
    losses: Mapping[str, Tensor],
    counts: Mapping[str, float] | None,
    tasks: Sequence[str] | None,
    named: Mapping[str, Tensor],
) -> StepLosses:
    """The present tasks of `tasks`; see `check_losses`."""
    check_losses(losses, counts)
    if distribution.active():
        tensors = [*losses.values(), *named.values()]
        device = tensors[0].device if tensors else torch.device("cpu")
        reduced = distribution.reduced_losses(losses, counts, tasks, device)
        return StepLosses(reduced.tasks, reduced.values, reduced.local, reduced.counts)
    present = [task for task in tasks or [] if task in losses and (counts is None or counts[task] > 0)]
    number = torch.tensor([1.0 if counts is None else float(counts[task]) for task in present], dtype=torch.float64)
    if not present:
        return StepLosses([], torch.zeros(0, dtype=torch.float64), {}, number)
    values = torch.stack([losses[task].detach() for task in present]).double().cpu()
    return StepLosses(present, values, {task: losses[task] for task in present}, number)


def check_losses(losses: Mapping[str, Tensor], counts: Mapping[str, float] | None) -> None:
    """BadValue or UnknownName for a loss that is not 0-d or has no count."""
    for task, loss in losses.items():
        if loss.dim() != 0:
            raise BadValue(f"the shape of the loss of task {task!r}", tuple(loss.shape), "(), one number a task")
        if counts is not None and task not in counts:
            raise UnknownName("task", task, counts, "counts=")


def named_parameters(model: Model | None) -> dict[str, Tensor]:
    """name -> parameter, in the model's order; none of no model."""
    if model is None:
        return {}
    if isinstance(model, nn.Module):
        return dict(model.named_parameters())
    if isinstance(model, Mapping):
        return {str(name): parameter for name, parameter in model.items()}
    return {f"parameter.{i}": parameter for i, parameter in enumerate(model)}
