"""Scores of a model on rows with labels."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from polytask.core.errors import BadValue
from polytask.tasks.mixture import evaluation_batches
from polytask.tasks.target import Target

Metrics = dict[str, dict[str, float | None]]
"""task -> metric -> value; None where undefined."""


def evaluate(
    model: nn.Module, splits: Mapping[str, Any], targets: Mapping[str, Target], batch_size: int = 2048
) -> tuple[Metrics, dict[str, float | None]]:
    """({task: {metric: value}}, {task: mean loss over its labels}), over all rows; no gradient, evaluation mode, restored after.

    Args:
        model: called with (inputs, tasks).
        splits: source -> rows (Examples or Stream).
        targets: the tasks to score; each is scored on the rows of the source that has its labels.
        batch_size: rows a forward pass.
    """
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    found: dict[str, list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]] = {task: [] for task in targets}
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            for split in splits.values():
                for batch in evaluation_batches(split, batch_size):
                    tasks = [task for task in targets if task in batch.labels]
                    outputs = model(batch.to(device).inputs, tasks) if tasks else {}
                    for task in tasks:
                        found[task].append((outputs[task].float().cpu(), batch.labels[task], batch.present[task]))
    finally:
        model.train(was_training)
    metrics: Metrics = {}
    losses: dict[str, float | None] = {}
    for task, pieces in found.items():
        if not pieces:
            raise BadValue(f"the rows of task {task!r}", 0, "at least one source that has its labels")
        outputs, labels, present = (torch.cat(part) for part in zip(*pieces, strict=True))
        metrics[task] = targets[task].score(outputs, labels, present)
        numerator, count = targets[task].loss(outputs, labels, present)
        losses[task] = float(numerator / count) if count else None
    return metrics, losses


def selection_score(metrics: Mapping[str, Mapping[str, float | None]], targets: Mapping[str, Target]) -> float | None:
    """The number that selects models: the mean over target tasks of their metric, turned so that higher is better.

    A task whose metric is undefined on these rows is left out (the same rows always leave out the same tasks); None if none is left.
    Auxiliary tasks do not count, unless there is no other.
    """
    chosen = [task for task, target in targets.items() if target.task.role == "target"] or list(targets)
    scores = [targets[task].selection_score(metrics[task]) for task in chosen]
    defined = [score for score in scores if score is not None]
    return sum(defined) / len(defined) if defined else None
