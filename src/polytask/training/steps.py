"""One training step: pieces of a batch -> losses -> balanced gradients -> the optimiser."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from polytask.balancing import BackwardReport, Balancer
from polytask.balancing.accumulation import accumulate
from polytask.core.errors import MissingInput
from polytask.sharing.tape import listen
from polytask.tasks.examples import Batch
from polytask.tasks.target import Target
from polytask.training.attached import Attached
from polytask.training.devices import Devices


@dataclass(frozen=True)
class TaskLosses:
    """Means over the present labels, how many labels are behind each, and what they were computed from.

    Attributes:
        representation: of each piece, where asked for.
    """

    losses: dict[str, Tensor]
    counts: dict[str, float]
    representation: list[Tensor]


def task_losses(
    model: nn.Module,
    pieces: Sequence[Batch],
    targets: Mapping[str, Target],
    devices: Devices,
    *,
    representation: bool = False,
) -> TaskLosses:
    """The losses of the tasks that have a label in these pieces, with the shared representation if it is asked for.

    With several processes a task without a label here stays, as a zero with its graph, since another process may have
    one: what is computed must not depend on the process.
    """
    losses: dict[str, Tensor] = {}
    counts: dict[str, float] = {}
    shared: list[Tensor] = []
    for piece in pieces:
        found = {task: piece.present[task].count_nonzero().item() for task in targets if task in piece.labels}
        tasks = [task for task, count in found.items() if count or devices.world > 1]
        if not tasks:
            continue
        moved = piece if devices.device.type == "cpu" else piece.to(devices.device)
        with devices.autocast(), listen() as tape:
            outputs = _outputs(model, moved, tasks, shared if representation else None)
        for task in tasks:
            numerator, _ = targets[task].loss(outputs[task].float(), moved.labels[task], moved.present[task])
            if torch.is_grad_enabled() and not numerator.requires_grad:
                raise MissingInput(
                    f"task {task!r} reaches no parameter that this stage trains; "
                    "name more of them in `trainable`, or leave the task out of the stage's `tasks`"
                )
            counts[task] = float(found[task])
            losses[task] = numerator / max(found[task], 1)
            if task in tape.penalties:  # what the task's gates ask for, as DSelect-k's do
                losses[task] = losses[task] + tape.penalties[task]
    return TaskLosses(losses, counts, shared)


def _outputs(model: Any, batch: Batch, tasks: list[str], shared: list[Tensor] | None) -> dict[str, Tensor]:
    """The outputs; the representation that they are computed from is appended to `shared`, if that is a list."""
    if shared is None:
        return model(batch.inputs, tasks)
    shared.append(model.representation(batch.inputs))
    return model.from_representation(shared[-1], tasks)


def train_step(
    model: nn.Module,
    pieces: Sequence[Batch],
    targets: Mapping[str, Target],
    balancer: Balancer,
    attached: Attached,
    optimizer: torch.optim.Optimizer,
    devices: Devices,
    *,
    parameters: Mapping[str, Tensor],
    seed: int,
    clip: float | None,
) -> BackwardReport | None:
    """Changes the model by one step; None, and no change, when no row of any process has a label.

    The attachments' own parameters are left with their gradient, for `attached.step`.

    Args:
        parameters: the model's, by name.
        seed: of torch's generator, which dropout draws from. It is seeded anew in each step (the run gives the
            generator back as it found it), so a resumed run draws the same.
        clip: the largest norm of the gradient.
    """
    devices.seed(seed)
    needs_representation = balancer.engine.reads == "representation"
    wanted = needs_representation or attached.reads_representation
    found = task_losses(model, pieces, targets, devices, representation=wanted)
    if not found.losses and devices.world == 1:
        return None
    terms = attached.gradients(found.losses, found.representation, parameters)  # before the graph is used up
    report = balancer.backward(
        found.losses,
        parameters,
        representation=found.representation if needs_representation else None,
        counts=found.counts,
        scaler=devices.scaler,
    )
    if not report.tasks:
        return None
    for parameter, grad in terms:
        accumulate(parameter, grad)
    if clip is not None:
        if devices.scaler is not None:
            devices.scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_([parameter for group in optimizer.param_groups for parameter in group["params"]], clip)
    if devices.scaler is None:
        optimizer.step()
    else:
        devices.scaler.step(optimizer)
        devices.scaler.update()
    optimizer.zero_grad()
    if balancer.looks_again:
        after = losses_again(model, pieces, targets, devices, seed)
        balancer.after_step(after.losses, counts=after.counts)
    return report


def losses_again(
    model: nn.Module, pieces: Sequence[Batch], targets: Mapping[str, Target], devices: Devices, seed: int
) -> TaskLosses:
    """The same batch's losses after the step, for rules that compare the two: with the same dropout, without a graph.

    Buffers (BatchNorm's running statistics) are left as they were, so that a batch counts once.
    """
    devices.seed(seed)
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with torch.no_grad():
        found = task_losses(model, pieces, targets, devices)
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])
    return found
