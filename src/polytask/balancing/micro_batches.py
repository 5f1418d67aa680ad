"""A step's batch in parts that fit into memory: each task's gradients, summed over the parts with their label counts.

What a rule then sees are the gradients of the whole batch, up to rounding. Memory: T copies of the shared gradients and
one of each private one, kept from part to part; the activations of one part only. Time: T backward passes a part.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from polytask.balancing import distribution
from polytask.balancing.accumulation import infinite, usable_graph
from polytask.balancing.combining import TaskGradients, combined_gradients
from polytask.balancing.engine import Combined, Step
from polytask.balancing.exact import differentiated
from polytask.balancing.graph import reached
from polytask.balancing.group_rules import GroupRules
from polytask.balancing.partition import Partition, refuse_outside, sorted_out
from polytask.balancing.step_losses import StepLosses
from polytask.core.task_vectors import TaskVectors


class MicroBatches:
    """Of one step, on this process; nothing is sent before the last part has come."""

    def __init__(self) -> None:
        self._sums: dict[str, dict[str, Tensor]] = {}  # parameter -> task -> sum of count times gradient
        self._losses: dict[str, float] = {}
        self._counts: dict[str, float] = {}

    def add(
        self,
        losses: Mapping[str, Tensor],
        counts: Mapping[str, float] | None,
        named: Mapping[str, Tensor],
        step: int,
        factor: float = 1.0,
    ) -> None:
        """Adds a part's gradients, times `factor`; without counts every part that has a task counts the same."""
        number = {task: 1.0 if counts is None else float(counts[task]) for task in losses}
        present = {task: loss for task, loss in losses.items() if number[task] > 0}
        masks = reached(present) if present else {}
        trainable = {name: parameter for name, parameter in named.items() if parameter.requires_grad}
        refuse_outside(masks, trainable)
        for bit, (task, loss) in enumerate(present.items()):
            wanted = {name: leaf for name, leaf in trainable.items() if masks.get(leaf, 0) >> bit & 1}
            with usable_graph(f"task {task!r}", step):
                grads = differentiated(loss * factor, wanted, keep_graph=bit + 1 < len(present))
            for name, grad in grads.items():
                dense, sums = (grad.to_dense() if grad.is_sparse else grad), self._sums.setdefault(name, {})
                sums[task] = dense * number[task] if task not in sums else sums[task].add_(dense, alpha=number[task])
            self._losses[task] = self._losses.get(task, 0.0) + number[task] * float(loss.detach())
            self._counts[task] = self._counts.get(task, 0.0) + number[task]

    def losses(self, tasks: Sequence[str], device: torch.device) -> StepLosses:
        """Means over all parts and processes, of the tasks that any of them has."""
        rows = [[kept.get(task, 0.0) for task in tasks] for kept in (self._losses, self._counts)]
        table = torch.tensor(rows, dtype=torch.float64, device=device)
        if distribution.active():
            distribution.sum_in_place([table])
        table = table.cpu()
        index = [place for place in range(len(tasks)) if float(table[1, place]) > 0]
        return StepLosses([tasks[i] for i in index], table[0, index] / table[1, index], {}, table[1, index])

    def gradients(self, step: Step, counts: Tensor, *, weighs_losses: bool = False) -> tuple[Partition, TaskGradients]:
        """Who reaches what, and each task's gradient of its mean over all parts and processes."""
        trainable = {name: parameter for name, parameter in step.named.items() if parameter.requires_grad}
        rows = [[task in self._sums.get(name, {}) for task in step.tasks] for name in trainable]
        reaches = torch.tensor(rows, dtype=torch.bool).view(len(trainable), len(step.tasks))
        if distribution.active():
            reaches = distribution.union(reaches)
        part = sorted_out(trainable, reaches, step.tasks, step.shared, weighs_losses=weighs_losses)
        stacks = {name: self._stack(name, trainable[name], step.tasks, counts) for name in part.shared}
        private = {name: self._stack(name, trainable[name], step.tasks, counts).sum(0) for name in part.private}
        if distribution.active():
            distribution.sum_in_place([*stacks.values(), *private.values()])
        return part, TaskGradients(TaskVectors(step.tasks, stacks), private)

    def _stack(self, name: str, parameter: Tensor, tasks: Sequence[str], counts: Tensor) -> Tensor:
        stack = torch.zeros(len(tasks), *parameter.shape, dtype=parameter.dtype, device=parameter.device)
        sums = self._sums.pop(name, {})
        for row, (task, count) in enumerate(zip(tasks, counts.tolist(), strict=True)):
            if task in sums:
                torch.div(sums.pop(task), count, out=stack[row])
        return stack


def combined_parts(parts: MicroBatches, step: Step, counts: Tensor, rules: GroupRules) -> Combined:
    """What the rules make of a step whose parts have all come."""
    if not rules.spec.weighs_losses:
        return combined_gradients(step, rules, *parts.gradients(step, counts))
    part, found = parts.gradients(step, counts, weighs_losses=True)
    weights = rules.weights("all", step.tasks, {"losses": step.values, **step.more}, step.priority)
    grads = found.shared.combined(weights)
    overflow = step.overflows([repr(name) for name in infinite(grads)])
    return Combined(
        [(part.parameters[name], grad) for name, grad in grads.items()], {"all": weights}, {}, [], skipped=overflow
    )
