"""One training step: pieces of a batch -> losses -> balanced gradients -> the optimiser."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from polytask.balancing import BackwardReport, Balancer
from polytask.core.noise import Noise
from polytask.tasks.examples import Batch
from polytask.tasks.target import Target
from polytask.training.devices import Devices


@dataclass(frozen=True)
class TaskLosses:
    """Means over the present labels, and how many labels are behind each."""

    losses: dict[str, Tensor]
    counts: dict[str, float]


def task_losses(
    model: nn.Module, pieces: Sequence[Batch], targets: Mapping[str, Target], devices: Devices
) -> TaskLosses:
    """The losses of the tasks that have a label in these pieces.

    With several processes a task without a label here stays, as a zero with its graph, since another process may have
    one: what is computed must not depend on the process.
    """
    losses: dict[str, Tensor] = {}
    counts: dict[str, float] = {}
    for piece in pieces:
        tasks = [
            task for task in targets if task in piece.labels and (devices.world > 1 or bool(piece.present[task].any()))
        ]
        if not tasks:
            continue
        moved = piece.to(devices.device)
        with devices.autocast():
            outputs = model(moved.inputs, tasks)
        for task in tasks:
            numerator, count = targets[task].loss(outputs[task].float(), moved.labels[task], moved.present[task])
            counts[task] = float(count)
            losses[task] = numerator / max(counts[task], 1.0)
    return TaskLosses(losses, counts)


def train_step(
    model: nn.Module,
    pieces: Sequence[Batch],
    targets: Mapping[str, Target],
    balancer: Balancer,
    optimizer: torch.optim.Optimizer,
    devices: Devices,
    *,
    noise: Noise,
    clip: float | None,
) -> BackwardReport | None:
    """Changes the model by one step; None, and no change, when no row here has a label.

    Dropout draws from torch's global generator, which is seeded anew for each step from the run's noise (the run gives
    the generator back as it found it), so a resumed run draws the same.
    """
    torch.manual_seed(noise.torch_seed())
    model.train()
    found = task_losses(model, pieces, targets, devices)
    if not found.losses and devices.world == 1:
        return None
    optimizer.zero_grad()
    report = balancer.backward(found.losses, model, counts=found.counts, scaler=devices.scaler)
    if devices.scaler is not None and clip is not None:
        devices.scaler.unscale_(optimizer)
    if clip is not None:
        nn.utils.clip_grad_norm_([parameter for group in optimizer.param_groups for parameter in group["params"]], clip)
    if devices.scaler is None:
        optimizer.step()
    else:
        devices.scaler.step(optimizer)
        devices.scaler.update()
    balancer.after_step()
    return report
