"""Scores of many models that differ in their weights alone, on rows that are read and ordered once."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from polytask.core.noise import Noise
from polytask.evaluation.scores import evaluate
from polytask.studies.experts import start_of
from polytask.tasks.examples import Batch, Examples, Ragged
from polytask.training.devices import Devices
from polytask.training.job import Job

BATCH = 64
Weights = Mapping[str, Tensor]
Scores = dict[str, float]


class Scorer:
    """Loads weights into one model and scores it: each task's own metric on a split.

    Args:
        job: the run on all tasks; its data, device and precision are what is used.
    """

    def __init__(self, job: Job) -> None:
        self._devices = Devices(job.run)
        self._model = start_of(job).build().to(self._devices.device)
        self._targets, self._sources = job.targets, job.sources
        self._splits = {
            name: {split: ByLength(rows) for split, rows in source.splits.items() if isinstance(rows, Examples)}
            for name, source in job.data.sources.items()
        }

    def __call__(self, weights: Weights, split: str, tasks: Sequence[str] | None = None) -> Scores:
        """{task: its metric}, of all tasks or the named ones; an undefined metric counts as 0."""
        named = list(self._targets) if tasks is None else list(tasks)
        targets = {task: self._targets[task] for task in named}
        sources = dict.fromkeys(source for task in named for source in self._sources[task])
        splits = {source: self._splits[source][split] for source in sources}
        self._model.load_state_dict(dict(weights))
        with self._devices.settings(), self._devices.autocast():
            metrics, _ = evaluate(self._model, splits, targets, BATCH)
        return {task: metrics[task][target.task.metric] or 0.0 for task, target in targets.items()}


class ByLength:
    """Rows in batches of like length, so that little is padded."""

    def __init__(self, rows: Examples) -> None:
        self._rows = rows
        ragged = next((x for x in rows.inputs.values() if isinstance(x, Ragged)), None)
        lengths = torch.zeros(len(rows)) if ragged is None else ragged.offsets.diff()
        self._order = torch.argsort(lengths, stable=True)

    def __len__(self) -> int:
        return len(self._rows)

    def batches(self, batch_size: int, noise: Noise | None = None, start: int = 0) -> Iterator[Batch]:
        """Every row once, the short ones first; `noise` is for training, which this is not."""
        assert noise is None
        for part in self._order.split(batch_size)[start:]:
            yield self._rows.batch(part)


def scaled(base: Weights, merged: Weights, scale: float) -> dict[str, Tensor]:
    """base + scale * (merged - base); what the base has under no such name, or as whole numbers, is the merged
    model's."""
    return {
        name: torch.lerp(base[name], value, scale) if name in base and value.is_floating_point() else value
        for name, value in merged.items()
    }
