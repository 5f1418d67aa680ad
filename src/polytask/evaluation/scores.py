"""Scores a model on a split: every metric and the loss of every task, and the one number that selection looks at."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from polytask.core.errors import MissingInput
from polytask.sharing.stems import named_stem
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
    """Runs the model over every row once; see `outputs_on`.

    Returns:
        ({task: {metric: value}}, {task: mean loss}), in the order of `targets`; None where a task has no label.

    Raises:
        MissingInput: no split has labels of a task.
    """
    found = outputs_on(model, splits, targets, batch_size)
    return found.metrics(), found.losses()


def outputs_on(
    model: nn.Module, splits: Mapping[str, Split], targets: Mapping[str, Target], batch_size: int
) -> "ScoredRows":
    """What the model gives on every row.

    Each module's training flag is as before afterwards, also after an error; no random number is drawn that the model
    does not draw in evaluation mode.

    Args:
        model: called as `model(inputs, tasks)`, with its stem where it has one a source, returns {task: outputs}.
        splits: source -> rows; a batch has the labels of its source's tasks.
        targets: the tasks to score.
        batch_size: rows in one forward pass.
    """
    found = ScoredRows(targets, list(splits))
    with evaluation_mode(model), torch.inference_mode():
        for batch in batches_of(splits, batch_size, device_of(model)):
            tasks = [task for task in targets if task in batch.labels]
            outputs = model(batch.inputs, tasks, **named_stem(model, batch.source))
            for task in tasks:
                found.see(task, batch, outputs[task])
    return found


class ScoredRows:
    """What a model gave for the rows of some splits, task by task and source by source.

    Args:
        targets: the tasks.
        sources: of the rows.
    """

    def __init__(self, targets: Mapping[str, Target], sources: list[str]) -> None:
        self._targets, self._sources = dict(targets), sources
        self._rows: dict[tuple[str, str], list[tuple[Tensor, Tensor, Tensor, Tensor | None]]] = {}
        self._losses: dict[tuple[str, str], list[float]] = {}
        self._counts: dict[tuple[str, str], int] = {}

    def see(self, task: str, batch: Batch, outputs: Tensor) -> None:
        key, groups = (task, batch.source), batch.groups.get(task)
        labels, present = batch.labels[task], batch.present[task]
        numerator, count = self._targets[task].loss(outputs, labels, present, groups)
        on_cpu = (outputs.cpu(), labels.cpu(), present.cpu(), None if groups is None else groups.cpu())
        self._rows.setdefault(key, []).append(on_cpu)
        self._losses.setdefault(key, []).append(float(numerator))
        self._counts[key] = self._counts.get(key, 0) + int(count)

    def metrics(self) -> Metrics:
        """{task: {metric: value}} over the sources that a task is trained on; MissingInput where no row has labels."""
        own = {task: self._own(task) for task in self._targets}
        unseen = next((task for task, sources in own.items() if not sources), None)
        if unseen is not None:
            sources = ", ".join(self._sources) or "none"
            raise MissingInput(f"no rows to score for task {unseen!r}; the splits given are of: {sources}")
        return {task: self._scored(task, sources) for task, sources in own.items()}

    def losses(self) -> dict[str, float | None]:
        """task -> mean loss over the same rows; None without a label."""
        found: dict[str, float | None] = {}
        for task in self._targets:
            keys = [(task, source) for source in self._own(task)]
            count = sum(self._counts[key] for key in keys)
            found[task] = math.fsum(each for key in keys for each in self._losses[key]) / count if count else None
        return found

    def by_source(self) -> dict[str, Metrics]:
        """{task: {source: {metric: value}}} of tasks that several sources have labels of, held-out ones included."""
        found: dict[str, Metrics] = {}
        for task, target in self._targets.items():
            sources = [source for own, source in self._rows if own == task]
            if len(sources) > 1 or set(sources) & set(target.task.held_out):
                found[task] = {source: self._scored(task, [source]) for source in sources}
        return found

    def _own(self, task: str) -> list[str]:
        held_out = self._targets[task].task.held_out
        return [source for own, source in self._rows if own == task and source not in held_out]

    def _scored(self, task: str, sources: list[str]) -> dict[str, float | None]:
        rows = [row for source in sources for row in self._rows[task, source]]
        outputs, labels, present, groups = zip(*rows, strict=True)
        together = None if groups[0] is None else torch.cat(groups)
        return self._targets[task].score(torch.cat(outputs), torch.cat(labels), torch.cat(present), together)


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
