"""The data of a learned merge from the runs that are merged: each knows its recipe, its preprocessing and its head."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from polytask.core.errors import MissingInput, UnknownName
from polytask.core.noise import Noise
from polytask.core.validation import validated
from polytask.evaluation.trained import load
from polytask.merging.distributions import Outputs, kind_by_loss
from polytask.merging.inputs import Inputs
from polytask.merging.jobs import Source
from polytask.merging.opening import Opened
from polytask.merging.plan_file import Read
from polytask.merging.settling import data_of
from polytask.merging.vectors import Stored
from polytask.sharing import MultiTaskModel
from polytask.sharing.stems import named_stem
from polytask.tasks.data import DataSpec, read_inputs
from polytask.tasks.examples import Batch, Examples
from polytask.tasks.loading import load_part
from polytask.tasks.target import Target


@dataclass(frozen=True)
class RunRows:
    """What one of the merged runs brings: its model, its tasks, and the rows of each of its sources."""

    model: MultiTaskModel
    targets: dict[str, Target]
    parts: list[Examples]
    heads: dict[str, list[str]]


class RunSamples:
    """See `polytask.merging.samples.Samples`; made by `run_samples`."""

    def __init__(self, runs: Mapping[str, RunRows], split: str, batch_size: int, seed: int) -> None:
        self._runs, self._split, self._size, self._seed = dict(runs), split, batch_size, seed

    @property
    def tasks(self) -> list[str]:
        return list(self._runs)

    def module(self, task: str) -> nn.Module:
        return self._runs[task].model

    def batch(self, task: str, number: int) -> Batch:
        """Of the sources in turn, each in passes that have an order of their own."""
        parts = self._runs[task].parts
        number, source = divmod(number, len(parts))
        part = parts[source]
        passed, position = divmod(number, -(-len(part) // self._size))
        order = Noise(self._seed, "merge", "order", task, part.source, passed).permutation(len(part))
        return part.batch(torch.from_numpy(order[position * self._size : (position + 1) * self._size]))

    def outputs(self, task: str, batch: Batch) -> dict[str, Tensor]:
        run = self._runs[task]
        return run.model(
            self._on_device(task, batch).inputs, run.heads[batch.source], **named_stem(run.model, batch.source)
        )

    def kind(self, task: str, head: str, outputs: Tensor) -> Outputs:
        return kind_by_loss(self._runs[task].targets[head].task.loss)

    def loss(self, task: str, outputs: Mapping[str, Tensor], batch: Batch) -> Tensor | None:
        targets, found = self._runs[task].targets, []
        rows = self._on_device(task, batch)
        for head, own in outputs.items():
            if head not in rows.labels:
                raise MissingInput(f"task {task!r}: the labels of {head!r} were not read")
            total, count = targets[head].loss(own, rows.labels[head], rows.present[head], rows.groups.get(head))
            if int(count):
                found.append(total / count)
        return torch.stack(found).sum() if found else None

    def _on_device(self, task: str, batch: Batch) -> Batch:
        return batch.to(next(self._runs[task].model.parameters()).device)

    def facts(self, task: str) -> dict[str, Any]:
        parts = self._runs[task].parts
        return {
            "from": [part.source for part in parts],
            "split": self._split,
            "rows": sum(len(part) for part in parts),
            "batch_size": self._size,
        }


def run_samples(
    read: Read, inputs: Inputs, labels: bool, *, data_dir: Path | None = None, data: Mapping[str, Any] | None = None
) -> RunSamples:
    """The rows that the plan's `data` says, of every run that is merged.

    Args:
        read: the plan; relative paths of tables start from `data_dir`, else from its folder.
        inputs: its models, opened.
        labels: whether labels are read.
        data: task -> {source: rows} from Python, for a run that was trained on such; of its only source rows alone.

    Raises: MissingInput for a model that is no run, or does not say where its rows are.
    """
    handed = dict(data or {})
    for task in handed:
        if task not in inputs.tasks:
            raise UnknownName("task", task, inputs.tasks, "data handed over from Python")
    wanted = data_of(read.plan)
    runs = {
        task: _rows(task, opened, read, labels, data_dir, handed.get(task)) for task, opened in inputs.tasks.items()
    }
    return RunSamples(runs, wanted.split, wanted.batch_size, read.plan.seed)


def _rows(task: str, opened: Opened, read: Read, labels: bool, data_dir: Path | None, handed: Any) -> RunRows:
    if opened.kind != "polytask":
        raise MissingInput(
            f"task {task!r}: {opened.reference} is no run of polytask, so nothing says where its rows are; from Python "
            "it is polytask.merge(..., samples=polytask.merging.samples(model, batches))"
        )
    trained, wanted = load(opened.path), data_of(read.plan)
    stored = {name: Source(opened.weights, name) for name in opened.weights.names()}
    # The values stay in the mapped file: what load has read of them goes.
    trained.model.load_state_dict(Stored(stored), strict=False, assign=True)
    preprocessors, _ = read_inputs(opened.path)
    specs = validated(DataSpec, trained.recipe.get("data") or {}, f"{opened.path}/recipe.yaml: data").named_sources(
        tuple(_by_source(handed))
    )
    parts, heads = [], {}
    for source in trained.sources_of():
        own = [name for name in trained.targets if source in trained.sources_of([name])]
        if source not in specs:
            raise MissingInput(
                f"task {task!r}: the rows of its source {source!r} came from Python; hand them over again, "
                f"polytask.merge(..., data={{{task!r}: {{{source!r}: rows}}}})"
            )
        heads[source] = own
        parts.append(
            load_part(
                source,
                specs[source],
                preprocessors[source],
                [trained.targets[name] for name in own],
                split=wanted.split,
                most=wanted.rows,
                seed=read.plan.seed,
                labels=labels,
                data_dir=data_dir,
                beside=read.places[0],
                handed_over=_by_source(handed).get(source),
            )
        )
    return RunRows(trained.model, trained.targets, parts, heads)


def _by_source(handed: Any) -> dict[str, Any]:
    """{source: rows}; rows alone are those of the only source."""
    if handed is None:
        return {}
    return dict(handed) if isinstance(handed, Mapping) else {"data": handed}
