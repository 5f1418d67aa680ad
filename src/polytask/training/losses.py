"""Pieces of a batch -> the tasks' losses, and the same again as a function of the parameters."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from polytask.balancing.session import VALIDATION
from polytask.core.errors import MissingInput
from polytask.core.noise import Noise
from polytask.sharing.stems import named_stem
from polytask.sharing.tape import listen
from polytask.tasks.examples import Batch
from polytask.tasks.target import Target
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
    model: Callable[..., Any],
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
    shared: list[Tensor] = []
    by_piece = [label_counts([piece], targets) for piece in pieces]
    totals = _summed(by_piece)
    for piece, found in zip(pieces, by_piece, strict=True):
        tasks = [task for task, count in found.items() if count or devices.world > 1]
        if not tasks:
            continue
        moved = piece if devices.device.type == "cpu" else piece.to(devices.device)
        with devices.autocast(), listen() as tape:
            outputs = _outputs(model, moved, tasks, shared if representation else None)
        for task in tasks:
            of_rows = (moved.labels[task], moved.present[task], moved.groups.get(task))
            numerator, _ = targets[task].loss(outputs[task].float(), *of_rows)
            if torch.is_grad_enabled() and not numerator.requires_grad:
                raise MissingInput(
                    f"task {task!r} reaches no parameter that this stage trains; "
                    "name more of them in `trainable`, or leave the task out of the stage's `tasks`"
                )
            part = numerator / max(totals[task], 1)
            share = tape.shares.get(task)
            if share is not None:  # the head predicts at several stages, and the loss is the mean over them
                part, earlier = part * share, [(share, outputs) for outputs in tape.earlier[task]]
                tape.guesses[task] = [*earlier, *tape.guesses.get(task, ())]
            for weight, guess in tape.guesses.get(task, ()):  # of heads that help in training only
                at_place, _ = targets[task].loss(guess.float(), *of_rows)
                part = part + weight * at_place / max(totals[task], 1)
            if task in tape.penalties:  # what the task's gates ask for, as DSelect-k's do
                part = part + tape.penalties[task] * (found[task] / totals[task] if totals[task] else 1.0)
            losses[task] = losses[task] + part if task in losses else part
    return TaskLosses(losses, {task: totals[task] for task in losses}, shared)


def _outputs(model: Any, batch: Batch, tasks: list[str], shared: list[Tensor] | None) -> dict[str, Tensor]:
    """The outputs; the representation that they are computed from is appended to `shared`, if that is a list."""
    stem = named_stem(model, batch.source)
    if shared is None:
        return model(batch.inputs, tasks, **stem)
    shared.append(model.representation(batch.inputs, tasks, **stem))
    return model.from_representation(shared[-1], tasks)


def label_counts(pieces: Sequence[Batch], targets: Mapping[str, Target]) -> dict[str, float]:
    """Task -> how many labels of it, or pairs of labels, these pieces have."""
    return _summed(
        {
            task: float(target.count(piece.labels[task], piece.present[task], piece.groups.get(task)).item())
            for task, target in targets.items()
            if task in piece.labels
        }
        for piece in pieces
    )


def _summed(counts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    total: dict[str, float] = {}
    for found in counts:
        for task, count in found.items():
            total[task] = total.get(task, 0.0) + count
    return total


def parts(pieces: Sequence[Batch], number: int) -> list[list[Batch]]:
    """The rows of a step as several batches of their own; rows are in random order, so the batches are independent."""
    if number == 1:
        return [list(pieces)]
    return [[piece.part(place, number) for piece in pieces] for place in range(number)]


@dataclass(frozen=True)
class Forward:
    """The losses of a step as a function, `forward=` of the balancer: it changes nothing.

    Buffers (BatchNorm's running statistics) are left as they are, so that a batch counts once. The step's batch sees
    the same dropout as before; the validation batch goes through the model as in an evaluation.
    """

    model: nn.Module
    pieces: Sequence[Batch]
    validation: Sequence[Batch]
    targets: Mapping[str, Target]
    devices: Devices
    seed: int

    def of_part(self, pieces: Sequence[Batch], seed: int) -> "Forward":
        """The same of a part of the rows."""
        return replace(self, pieces=pieces, seed=seed)

    def __call__(self, parameters: Mapping[str, Tensor] | None = None, batch: int | str = 0) -> dict[str, Tensor]:
        return self.losses(parameters, batch).losses

    def losses(self, parameters: Mapping[str, Tensor] | None = None, batch: int | str = 0) -> TaskLosses:
        """With how many labels are behind each."""
        call = self._unchanging(parameters)
        if batch != VALIDATION:
            self.devices.seed(self.seed)
            return task_losses(call, self.pieces, self.targets, self.devices)
        was_training = self.model.training
        self.model.eval()
        try:
            found = task_losses(call, self.validation, self.targets, self.devices)
        finally:
            self.model.train(was_training)
        labelled = {task: loss for task, loss in found.losses.items() if found.counts[task]}
        return TaskLosses(labelled, found.counts, [])

    def part(self, fraction: float) -> dict[str, Tensor]:
        """The losses on a fraction of the rows, which the step's seed draws; a task without a label there gets one."""
        self.devices.seed(self.seed)
        chosen = drawn_rows(self.pieces, fraction, self.seed)
        return task_losses(self._unchanging(None), chosen, self.targets, self.devices).losses

    def _unchanging(self, parameters: Mapping[str, Tensor] | None) -> "_Unchanging":
        used = {name: buffer.clone() for name, buffer in self.model.named_buffers()} | dict(parameters or {})
        return _Unchanging(self.model, used)


@dataclass(frozen=True)
class _Unchanging:
    """The model as a function that leaves its buffers alone."""

    model: nn.Module
    used: dict[str, Tensor]

    @property
    def stems(self) -> Any:
        return getattr(self.model, "stems", None)

    def __call__(self, inputs: Mapping[str, Tensor], tasks: Sequence[str], **stem: str) -> dict[str, Tensor]:
        return functional_call(self.model, self.used, (inputs, tasks), stem)


def drawn_rows(pieces: Sequence[Batch], fraction: float, seed: int) -> list[Batch]:
    """A part of each piece: the fraction of its rows, and one with a label for each task that would have none."""
    drawn = []
    for number, piece in enumerate(pieces):
        order = torch.from_numpy(Noise(seed, "subset", number).permutation(len(piece)))
        taken = torch.zeros(len(piece), dtype=torch.bool)
        taken[order[: math.ceil(fraction * len(piece))]] = True
        for present in piece.present.values():
            labelled = present if present.dim() == 1 else present.flatten(1).any(1)
            if labelled.any() and not (labelled & taken).any():
                taken[order[labelled[order]][0]] = True
        drawn.append(piece.at(taken.nonzero()[:, 0]))
    return drawn
