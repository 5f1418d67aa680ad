"""The exact engine: one backward pass a task, its gradients written side by side into one stack a parameter."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from polytask.balancing import distribution
from polytask.balancing.graph import reached
from polytask.core.errors import BadValue, MissingInput
from polytask.core.task_vectors import TaskVectors


@dataclass(frozen=True)
class Partition:
    """Which task reaches which parameter.

    Attributes:
        parameters: name -> parameter, in the model's order.
        reaches: bool [parameters, T].
        shared: names of those reached by two or more tasks, or as the caller said.
    """

    parameters: dict[str, Tensor]
    reaches: Tensor
    shared: list[str]

    @property
    def private(self) -> list[str]:
        shared = dict.fromkeys(self.shared)
        return [
            name for name, row in zip(self.parameters, self.reaches, strict=True) if name not in shared and row.any()
        ]


def partition(
    losses: Mapping[str, Tensor], tasks: Sequence[str], named: Mapping[str, Tensor], shared: Sequence[str] | None
) -> Partition:
    """Sorts the parameters by who reaches them; leaves outside the model are taken in too, named leaf.0, leaf.1, ...

    With a single task everything that it reaches counts as shared: the rule then sees one task and its own gradient.
    """
    masks = reached(losses) if losses else {}
    parameters = {name: parameter for name, parameter in named.items() if parameter.requires_grad}
    known = {id(parameter) for parameter in parameters.values()}
    if not distribution.active():
        outside = [leaf for leaf in masks if id(leaf) not in known]
        parameters |= {f"leaf.{i}": leaf for i, leaf in enumerate(outside)}
    column = [tasks.index(task) for task in losses]
    reaches = torch.zeros(len(parameters), len(tasks), dtype=torch.bool)
    for row, parameter in enumerate(parameters.values()):
        mask = masks.get(parameter, 0)
        for bit, task in enumerate(column):
            reaches[row, task] = bool(mask >> bit & 1)
    if distribution.active():
        reaches = distribution.union(reaches)
    if shared is not None:
        for name in shared:
            if name not in parameters:
                raise BadValue("a name in shared=", name, "names of trainable parameters of the model")
        return Partition(parameters, reaches, list(shared))
    least = min(2, len(tasks))
    found = [name for name, row in zip(parameters, reaches, strict=True) if int(row.sum()) >= least]
    if not found:
        raise MissingInput(
            f"no parameter is reached by two of the tasks {', '.join(tasks)}: there is nothing to balance"
        )
    return Partition(parameters, reaches, found)


class ExactEngine:
    """Per-task gradients of the shared parameters; buffers are kept from step to step."""

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def gradients(
        self, losses: Mapping[str, Tensor], tasks: Sequence[str], part: Partition
    ) -> tuple[TaskVectors, dict[str, Tensor]]:
        """(shared gradients by task, gradients of the private parameters). Nothing is written into .grad.

        Each task's backward pass visits only what that task reaches, so each head is traversed once. Peak memory: T
        copies of the shared gradients.
        """
        stacks = {name: self._buffer(name, part.parameters[name], len(tasks)) for name in part.shared}
        private: dict[str, Tensor] = {}
        rows = dict(zip(part.parameters, part.reaches.tolist(), strict=True))
        present = [task for task in tasks if task in losses]
        for task in tasks:
            row = tasks.index(task)
            names = [name for name in part.parameters if rows[name][row]] if task in losses else []
            parameters = [part.parameters[name] for name in names]
            grads = (
                torch.autograd.grad(losses[task], parameters, retain_graph=task != present[-1], allow_unused=True)
                if names
                else []
            )
            found = dict(zip(names, grads, strict=True))
            for name, stack in stacks.items():
                grad = found.get(name)
                if grad is None:
                    stack[row].zero_()
                else:
                    stack[row].copy_(grad.to_dense() if grad.is_sparse else grad)
            for name, grad in found.items():
                if name not in stacks and grad is not None:
                    private[name] = private[name] + grad if name in private else grad
        if distribution.active():
            for name in part.private:
                private.setdefault(name, torch.zeros_like(part.parameters[name]))
            distribution.sum_in_place([*stacks.values(), *(private[name] for name in part.private)])
        return TaskVectors(tasks, stacks), private

    def _buffer(self, name: str, parameter: Tensor, tasks: int) -> Tensor:
        shape = (tasks, *parameter.shape)
        kept = self._buffers.get(name)
        if kept is None or kept.shape != shape or kept.dtype != parameter.dtype or kept.device != parameter.device:
            kept = self._buffers[name] = torch.empty(shape, dtype=parameter.dtype, device=parameter.device)
        return kept
