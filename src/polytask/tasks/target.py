"""A task fitted on the labels of the training split: it ties label columns, outputs, the loss and the metrics."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from polytask.core.errors import DataError, NotFinite
from polytask.core.outputs import OutputSchema
from polytask.tasks.labels.columns import read_groups
from polytask.tasks.losses import GROUPED_LOSSES, LOSSES, ordered_pairs
from polytask.tasks.metrics import METRICS
from polytask.tasks.task import Task


@dataclass(frozen=True)
class Target:
    """Labels are encoded for the loss (0/1; class numbers; standardised values).

    Metrics and predictions are in the label's own terms (probabilities; classes; units).

    Attributes:
        task: what was fitted.
        classes: of a multiclass task, in the order of its outputs.
        mean, std: of a regression label in the training split; the loss sees (label - mean) / std.
        degenerate: why training has nothing to learn here (one class, one value, no label at all); None if it has.
    """

    task: Task
    classes: tuple[bool | int | float | str, ...] = ()
    mean: float = 0.0
    std: float = 1.0
    degenerate: str | None = None

    @classmethod
    def fit(cls, task: Task, frames: Any, *, place: str | None = None, allow_degenerate: bool = False) -> "Target":
        """Reads the labels of the training split.

        Args:
            task: the task.
            frames: the training split: a polars DataFrame, a mapping from column to values, or an iterable of such
                chunks.
            place: where the rows come from, for messages.
            allow_degenerate: if True, a task with one class in training is returned with `degenerate` saying so.

        Raises:
            DataError: a label that the task does not allow; one class in training, unless allowed.
            UnknownName: the frame lacks a column.
        """
        chunks = [frames] if hasattr(frames, "get_column") or isinstance(frames, Mapping) else frames
        target = task.behaviour.fit(task, chunks, place)
        if target.degenerate and not allow_degenerate:
            raise DataError(f"{target.degenerate}; allowed: two or more, or degenerate: drop | keep")
        return target

    @property
    def outputs(self) -> int:
        """How many numbers a head gives a row."""
        return self.schema.width

    @property
    def schema(self) -> OutputSchema:
        """What these numbers stand for."""
        return self.task.behaviour.schema(self)

    def encode(self, frame: Any, place: str | None = None) -> tuple[Tensor, Tensor]:
        """(labels, present) of a frame's rows, as `polytask.tasks.examples.Batch` has them."""
        return self.task.behaviour.encode(self, frame, place)

    def groups(self, frame: Any, place: str | None = None) -> Tensor | None:
        """int64 [N], equal where the rows belong together; None where the task has no `group_by`."""
        return None if self.task.group_by is None else read_groups(frame, self.task, place)

    def loss(
        self, outputs: Tensor, labels: Tensor, present: Tensor, groups: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """(numerator, count), 0-d: the loss summed over present labels, or over their pairs within groups, with its
        graph, and how many there are."""
        if self.task.loss in GROUPED_LOSSES:
            assert groups is not None  # the kind needs group_by
            numerator = GROUPED_LOSSES[self.task.loss](outputs, labels, present, groups)
        else:
            numerator = LOSSES[self.task.loss](outputs, labels, present)
        return numerator, self.count(labels, present, groups)

    def count(self, labels: Tensor, present: Tensor, groups: Tensor | None = None) -> Tensor:
        """0-d: what the loss is a sum over."""
        if self.task.loss in GROUPED_LOSSES:
            assert groups is not None
            return torch.tensor(len(ordered_pairs(labels, present, groups)[0]), device=present.device)
        return present.count_nonzero()

    def decode(self, outputs: Tensor) -> dict[str, np.ndarray]:
        """Predictions: column -> one value a row.

        Binary: the probability of the positive value, under the task's name. Multiclass: the class under the name and a
        probability a class under `name.class`. Multilabel: a probability a label under `name.column`. Regression: the
        value.
        """
        return self.task.behaviour.decode(self, outputs.detach().to("cpu", torch.float64))

    def score(
        self, outputs: Tensor, labels: Tensor, present: Tensor, groups: Tensor | None = None
    ) -> dict[str, float | None]:
        """The task's metric first, then the kind's others; None where undefined (no label, one class, ...). Metrics
        within groups are there where the task has groups.

        Raises:
            NotFinite: an output of a row with a label is NaN or infinite.
        """
        outputs, labels, present = outputs.detach().to("cpu", torch.float64), labels.cpu(), present.cpu()
        wrong = ~torch.isfinite(outputs[present])
        if wrong.any():
            count = f"{int(wrong.sum())} of {wrong.numel()}"
            raise NotFinite(f"task {self.task.name!r}: {count} outputs are NaN or infinite")
        units = self.task.behaviour.to_units
        outputs, labels = units(self, outputs), units(self, labels)
        names = dict.fromkeys((self.task.metric, *self.task.behaviour.companions))
        usable = [name for name in names if groups is not None or METRICS[name].grouped is None]
        return {name: METRICS[name].compute(outputs, labels, present, groups) for name in usable}

    def selection_score(self, scores: Mapping[str, float | None]) -> float | None:
        """The task's metric out of what `score` returned, turned so that higher is better; None where undefined."""
        value = scores[self.task.metric]
        return value if value is None or METRICS[self.task.metric].higher_is_better else -value

    def to_json(self) -> dict[str, Any]:
        return {
            "task": self.task.model_dump(mode="json", exclude_none=True),
            "classes": list(self.classes),
            "mean": self.mean,
            "std": self.std,
            "degenerate": self.degenerate,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Target":
        return cls(
            task=Task(**values["task"]),
            classes=tuple(values["classes"]),
            mean=values["mean"],
            std=values["std"],
            degenerate=values["degenerate"],
        )
