"""The exact engine: one backward pass a task, its gradients written side by side into one stack a parameter."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from polytask.balancing import distribution
from polytask.balancing.accumulation import own, usable_graph
from polytask.balancing.graph import reached
from polytask.balancing.partition import Partition, refuse_outside
from polytask.core.task_vectors import TaskVectors


@dataclass(frozen=True)
class TaskGradients:
    """What one backward pass a task gives.

    Attributes:
        shared: the tasks' gradients of the shared parameters; its stacks are overwritten by the next step.
        private: name -> the gradient of a parameter that one task reaches, owned by the caller.
        rows: name -> the rows that any task touched, for shared parameters whose gradients are all sparse.
    """

    shared: TaskVectors
    private: dict[str, Tensor]
    rows: dict[str, Tensor] = field(default_factory=dict)


class ExactEngine:
    """Per-task gradients of the shared parameters; buffers are kept from step to step."""

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def gradients(
        self, losses: Mapping[str, Tensor], tasks: Sequence[str], part: Partition, *, step: int = 0
    ) -> TaskGradients:
        """Nothing is written into .grad.

        Each task's backward pass visits only what that task reaches, so each head is traversed once. Peak memory: T
        copies of the shared gradients.
        """
        stacks = {name: self._buffer(name, part.parameters[name], len(tasks)) for name in part.shared}
        private: dict[str, Tensor] = {}
        touched: dict[str, list[Tensor] | None] = {}  # None once a task's gradient was dense
        last = next((task for task in reversed(tasks) if task in losses), None)
        for row, task in enumerate(tasks):
            found: dict[str, Tensor] = {}
            if task in losses:
                with usable_graph(f"task {task!r}", step):
                    found = _gradients(losses[task], part, row, keep_graph=task != last)
            for name, stack in stacks.items():
                _write(stack[row], found.get(name))
                if name in found:
                    _note_rows(touched, name, found[name])
            for name, grad in found.items():
                if name not in stacks:
                    private[name] = private[name] + grad if name in private else own(grad)
        vectors = TaskVectors(tasks, stacks)
        if distribution.active():
            _sum_over_processes(vectors, private, part)
            return TaskGradients(vectors, private)
        rows = {name: torch.cat(found).unique() for name, found in touched.items() if found is not None}
        return TaskGradients(vectors, private, rows)

    def _buffer(self, name: str, parameter: Tensor, tasks: int) -> Tensor:
        shape = (tasks, *parameter.shape)
        kept = self._buffers.get(name)
        if kept is None or kept.shape != shape or kept.dtype != parameter.dtype or kept.device != parameter.device:
            kept = self._buffers[name] = torch.empty(shape, dtype=parameter.dtype, device=parameter.device)
        return kept


def _gradients(loss: Tensor, part: Partition, row: int, *, keep_graph: bool) -> dict[str, Tensor]:
    """Name -> gradient of what the task of this row reaches."""
    reaches = part.reaches[:, row].tolist()
    reached = {name: tensor for (name, tensor), used in zip(part.parameters.items(), reaches, strict=True) if used}
    return _differentiated(loss, reached, keep_graph=keep_graph)


def _differentiated(loss: Tensor, wanted: Mapping[str, Tensor], *, keep_graph: bool) -> dict[str, Tensor]:
    if not wanted:
        return {}
    grads = torch.autograd.grad(loss, [*wanted.values()], retain_graph=keep_graph, allow_unused=True)
    return {name: grad for name, grad in zip(wanted, grads, strict=True) if grad is not None}


def _write(row: Tensor, grad: Tensor | None) -> None:
    if grad is None:
        row.zero_()
    else:
        row.copy_(grad.to_dense() if grad.is_sparse else grad)


def _note_rows(touched: dict[str, list[Tensor] | None], name: str, grad: Tensor) -> None:
    rows = touched.setdefault(name, [])
    if not grad.is_sparse or grad.sparse_dim() != 1:
        touched[name] = None
    elif rows is not None:
        rows.append(grad._indices()[0])


def _sum_over_processes(vectors: TaskVectors, private: dict[str, Tensor], part: Partition) -> None:
    for name in part.private:
        private[name] = _dense(private.get(name), part.parameters[name])
    distribution.sum_in_place([*vectors.stacks.values(), *(private[name] for name in part.private)])


def distributed_gradients(
    total: Tensor | None, tasks: Sequence[str], trainable: Mapping[str, Tensor], step: int
) -> dict[str, Tensor]:
    """Gradients of the weighted sum of the losses, summed over processes; a process without a loss sends zeros."""
    found: dict[str, Tensor] = {}
    if total is not None:
        refuse_outside(reached({"the weighted sum": total}), trainable)
        with usable_graph(f"tasks {', '.join(tasks)}", step):
            found = _differentiated(total, trainable, keep_graph=False)
    used = distribution.union(torch.tensor([name in found for name in trainable])).tolist()
    summed = {
        name: _dense(found.get(name), parameter)
        for (name, parameter), anywhere in zip(trainable.items(), used, strict=True)
        if anywhere
    }
    distribution.sum_in_place([*summed.values()])
    return summed


def _dense(grad: Tensor | None, parameter: Tensor) -> Tensor:
    if grad is None:
        return torch.zeros_like(parameter, memory_format=torch.contiguous_format)
    return grad.to_dense() if grad.is_sparse else own(grad)
