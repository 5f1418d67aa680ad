"""Scores a model on a split: every metric and the loss of every task, and the one number that selection looks at."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from polytask.core.errors import MissingInput
from polytask.tasks.examples import Batch
from polytask.tasks.mixture import Split, evaluation_batches
from polytask.tasks.target import Target

Metrics = dict[str, dict[str, float | None]]
"""Task -> metric -> value; None is undefined."""


@dataclass(frozen=True)
class SelectionScore:
    """What early stopping and the choice of a learning rate compare; higher is better.

    Attributes:
        value: the mean over the tasks with role `target`; None when all of them are undefined.
        left_out: tasks with role `target` whose metric is undefined, which the mean leaves out.
    """

    value: float | None
    left_out: tuple[str, ...]


def evaluate(
    model: nn.Module, splits: Mapping[str, Split], targets: Mapping[str, Target], batch_size: int
) -> tuple[Metrics, dict[str, float | None]]:
    """Runs the model over every row once.

    Each module's training flag is as before afterwards, also after an error; no random number is drawn that the model
    does not draw in evaluation mode.

    Args:
        model: called as `model(inputs, tasks)`, returns {task: outputs}.
        splits: source -> rows; a batch has the labels of its source's tasks.
        targets: the tasks to score.
        batch_size: rows in one forward pass.

    Returns:
        ({task: {metric: value}}, {task: mean loss}), in the order of `targets`; None where a task has no label.

    Raises:
        MissingInput: no split has labels of a task.
    """
    outputs: dict[str, list[Tensor]] = {task: [] for task in targets}
    labels: dict[str, list[Tensor]] = {task: [] for task in targets}
    present: dict[str, list[Tensor]] = {task: [] for task in targets}
    losses: dict[str, list[float]] = {task: [] for task in targets}
    groups: dict[str, list[Tensor]] = {task: [] for task in targets}
    counts = dict.fromkeys(targets, 0)
    with evaluation_mode(model), torch.inference_mode():
        for batch in batches_of(splits, batch_size, device_of(model)):
            tasks = [task for task in targets if task in batch.labels]
            found = model(batch.inputs, tasks)
            for task in tasks:
                own = batch.groups.get(task)
                numerator, count = targets[task].loss(found[task], batch.labels[task], batch.present[task], own)
                if own is not None:
                    groups[task].append(own.cpu())
                losses[task].append(float(numerator))
                counts[task] += int(count)
                outputs[task].append(found[task].cpu())
                labels[task].append(batch.labels[task].cpu())
                present[task].append(batch.present[task].cpu())
    unseen = [task for task in targets if not outputs[task]]
    if unseen:
        raise MissingInput(
            f"no rows to score for task {unseen[0]!r}; the splits given are of: {', '.join(splits) or 'none'}"
        )
    metrics = {
        task: target.score(
            torch.cat(outputs[task]),
            torch.cat(labels[task]),
            torch.cat(present[task]),
            torch.cat(groups[task]) if groups[task] else None,
        )
        for task, target in targets.items()
    }
    means = {task: math.fsum(losses[task]) / counts[task] if counts[task] else None for task in targets}
    return metrics, means


def selection_score(metrics: Mapping[str, Mapping[str, float | None]], targets: Mapping[str, Target]) -> SelectionScore:
    """The mean over target tasks of their metric, turned so that higher is better; undefined ones are left out.

    Where no task has the role `target` (a baseline of an auxiliary task alone) all count.
    """
    chosen = [name for name, target in targets.items() if target.task.role == "target"] or list(targets)
    scores = {name: targets[name].selection_score(metrics[name]) for name in chosen}
    defined = [score for score in scores.values() if score is not None]
    left_out = tuple(name for name, score in scores.items() if score is None)
    return SelectionScore(math.fsum(defined) / len(defined) if defined else None, left_out)


def batches_of(splits: Mapping[str, Split], batch_size: int, device: torch.device) -> Iterator[Batch]:
    """Every row once, source by source, on the device."""
    for split in splits.values():
        for batch in evaluation_batches(split, batch_size):
            yield batch.to(device)


def device_of(model: nn.Module) -> torch.device:
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Restores module by module: a layer that was frozen in evaluation mode stays there."""
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in flags:
            module.training = training
