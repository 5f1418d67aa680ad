"""The exact engine: one backward pass a task, its gradients written side by side into one stack a parameter."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from polytask.balancing import distribution
from polytask.balancing.accumulation import own, own_gradients, usable_graph
from polytask.balancing.combining import TaskGradients, combined_gradients
from polytask.balancing.engine import Combined, Engine, Step
from polytask.balancing.graph import reached
from polytask.balancing.group_rules import GroupRules
from polytask.balancing.layer_gradients import LayerGradients
from polytask.balancing.partition import Partition, partition, refuse_outside
from polytask.core.task_vectors import TaskVectors


class ExactEngine(Engine):
    """Per-task gradients of the shared parameters; buffers are kept from step to step."""

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def combine(self, step: Step, rules: GroupRules) -> Combined:
        part = partition(step.losses, step.tasks, step.named, step.shared)
        return combined_gradients(step, rules, part, self.over_processes(step.losses, step.tasks, part, step.number))

    def over_processes(
        self, losses: Mapping[str, Tensor], tasks: Sequence[str], part: Partition, step: int
    ) -> TaskGradients:
        """As `gradients`, summed over processes."""
        found = self.gradients(losses, tasks, part, step=step)
        if distribution.active():
            _sum_over_processes(found.shared, found.private, part)
        return found

    def gradients(
        self,
        losses: Mapping[str, Tensor],
        tasks: Sequence[str],
        part: Partition,
        *,
        step: int = 0,
        layers: Sequence[LayerGradients] = (),
    ) -> TaskGradients:
        """Of this process; nothing is written into .grad.

        Each task's backward pass visits only what that task reaches, so each head is traversed once. Peak memory: T
        copies of the shared gradients. Those of `layers` are not formed: the layers are given the gradients of their
        outputs.
        """
        inside = {name for layer in layers for name in layer.layer.names}
        stacks = {
            name: self.buffer(name, (len(tasks), *part.parameters[name].shape), part.parameters[name])
            for name in part.shared
            if name not in inside
        }
        private: dict[str, Tensor] = {}
        touched: dict[str, list[Tensor] | None] = {}  # None once a task's gradient was dense
        last = next((task for task in reversed(tasks) if task in losses), None)
        for row, task in enumerate(tasks):
            found: dict[str, Tensor] = {}
            if task in losses:
                with usable_graph(f"task {task!r}", step):
                    found = _gradients(losses, task, part, row, layers, keep_graph=task != last)
            for layer in layers:
                layer.write(row, [found.pop(_edge(layer, i), None) for i in range(len(layer.layer.uses))])
            for name, stack in stacks.items():
                _write(stack[row], found.get(name))
                if name in found:
                    _note_rows(touched, name, found[name])
            for name, grad in found.items():
                if name not in stacks:
                    private[name] = private[name] + grad if name in private else own(grad)
        sparse = {} if distribution.active() else touched  # sums over processes are dense
        rows = {name: torch.cat(found).unique() for name, found in sparse.items() if found is not None}
        return TaskGradients(TaskVectors(tasks, stacks), private, rows)

    def buffer(self, name: str, shape: Sequence[int], like: Tensor) -> Tensor:
        """Memory that is kept from step to step under a name, as long as shape, type and device stay."""
        kept = self._buffers.get(name)
        if kept is None or kept.shape != tuple(shape) or kept.dtype != like.dtype or kept.device != like.device:
            kept = self._buffers[name] = torch.empty(tuple(shape), dtype=like.dtype, device=like.device)
        return kept


def _gradients(
    losses: Mapping[str, Tensor],
    task: str,
    part: Partition,
    row: int,
    layers: Sequence[LayerGradients],
    *,
    keep_graph: bool,
) -> dict[str, Tensor]:
    """Name -> gradient of what the task of this row reaches; of layers, that of the output of each use."""
    inside = {name for layer in layers for name in layer.layer.names}
    reaches = part.reaches[:, row].tolist()
    wanted: dict[str, Tensor | GradientEdge] = {
        name: tensor
        for (name, tensor), used in zip(part.parameters.items(), reaches, strict=True)
        if used and name not in inside
    }
    if not layers:
        return differentiated(losses[task], wanted, keep_graph=keep_graph)
    bit = 1 << list(losses).index(task)
    for layer in layers:
        for number, use in enumerate(layer.layer.uses):
            if use.mask & bit:
                wanted[_edge(layer, number)] = GradientEdge(use.node, 0)
    with _after_hooks(layers) as hooked:
        found = differentiated(losses[task], wanted, keep_graph=keep_graph)
    return found | hooked


@contextmanager
def _after_hooks(layers: Sequence[LayerGradients]) -> Iterator[dict[str, Tensor]]:
    """The gradients of layers' outputs as the layers get them in a backward pass inside, where they take part in it.

    What autograd returns for the output of a layer that takes part is from before the hooks on that tensor.
    """
    found: dict[str, Tensor] = {}

    def listener(name: str) -> Callable[[tuple[Tensor | None, ...]], None]:
        def listen(grads: tuple[Tensor | None, ...]) -> None:
            if grads[0] is not None:
                found[name] = grads[0]

        return listen

    handles = [
        use.node.register_prehook(listener(_edge(layer, number)))
        for layer in layers
        for number, use in enumerate(layer.layer.uses)
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _edge(layer: LayerGradients, number: int) -> str:
    """What the gradient of a use's output is called; no parameter's name has a blank."""
    return f"{layer.layer.weight} {number}"


def differentiated(
    outputs: Tensor | Sequence[Tensor],
    wanted: Mapping[str, Tensor | GradientEdge],
    *,
    cotangents: Sequence[Tensor] | None = None,
    keep_graph: bool = False,
) -> dict[str, Tensor]:
    """name -> the gradient of the sum of the outputs, each times its cotangent; autograd may hold the tensors too."""
    if not wanted:
        return {}
    inputs: Any = [*wanted.values()]  # torch's own annotation knows no list of both
    grads = torch.autograd.grad(outputs, inputs, cotangents, retain_graph=keep_graph, allow_unused=True)
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
        private[name] = dense(private.get(name), part.parameters[name])
    distribution.sum_in_place([*vectors.stacks.values(), *(private[name] for name in part.private)])


def distributed_gradients(
    total: Tensor | None, tasks: Sequence[str], trainable: Mapping[str, Tensor], step: int
) -> dict[str, Tensor]:
    """Gradients of the weighted sum of the losses, summed over processes; a process without a loss sends zeros."""
    found: dict[str, Tensor] = {}
    if total is not None:
        refuse_outside(reached({"the weighted sum": total}), trainable)
        with usable_graph(f"tasks {', '.join(tasks)}", step):
            found = differentiated(total, trainable, keep_graph=False)
    used = distribution.union(torch.tensor([name in found for name in trainable])).tolist()
    summed = {
        name: dense(found.get(name), parameter)
        for (name, parameter), anywhere in zip(trainable.items(), used, strict=True)
        if anywhere
    }
    distribution.sum_in_place([*summed.values()])
    return summed


def summed_gradients(
    outputs: Sequence[Tensor], cotangents: Sequence[Tensor], leaves: Mapping[str, Tensor], *, keep_graph: bool = False
) -> dict[str, Tensor]:
    """name -> the gradient of the sum of outputs times cotangents, summed over processes, which nobody else holds."""
    if not distribution.active():
        return own_gradients(outputs, cotangents, leaves, keep_graph=keep_graph)
    found = differentiated(outputs, leaves, cotangents=cotangents, keep_graph=keep_graph) if outputs else {}
    summed = {name: dense(found.get(name), leaf) for name, leaf in leaves.items()}
    distribution.sum_in_place([*summed.values()])
    return summed


def summed_grads(found: Mapping[str, Tensor], leaves: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """name -> gradient over all processes of what any of them has reached, from this one's, which nobody else holds."""
    if not distribution.active():
        return dict(found)
    anywhere = distribution.union(torch.tensor([name in found for name in leaves])).tolist()
    used = {name: leaf for (name, leaf), anyone in zip(leaves.items(), anywhere, strict=True) if anyone}
    summed = {name: found[name].to_dense() if name in found else torch.zeros_like(leaf) for name, leaf in used.items()}
    distribution.sum_in_place([*summed.values()])
    return summed


def dense(grad: Tensor | None, parameter: Tensor) -> Tensor:
    """A dense gradient of the caller's own; zeros where there is none."""
    if grad is None:
        return torch.zeros_like(parameter, memory_format=torch.contiguous_format)
    return grad.to_dense() if grad.is_sparse else own(grad)
