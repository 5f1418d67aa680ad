"""Before the first step: gates that choose by examples get the tasks' embeddings; see `sharing.example_embeddings`."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from polytask.core.errors import DataError
from polytask.core.noise import Noise
from polytask.sharing import MultiTaskModel, read_examples
from polytask.sharing.example_embeddings import unread
from polytask.sharing.stems import named_stem
from polytask.tasks.examples import Batch
from polytask.tasks.mixture import Mixture, MixtureSpec
from polytask.training.devices import Devices
from polytask.training.job import Job

ROWS = 1024
_BATCH = 64


def read_unread(job: Job, model: MultiTaskModel, devices: Devices) -> None:
    """Makes the embeddings that are not made yet, of up to 1,024 labelled training rows a task.

    The encoder is the recipe's as it starts, without `init_from` and by a seed of its own: a task's vector depends on
    the encoder's options and on its examples alone, so those of tasks that join later compare with the others.
    """
    waiting = unread(model)
    if not waiting:
        return
    spec, run = job.model.model_copy(update={"init_from": None}), job.run.model_copy(update={"seed": 0})
    start = replace(job, model=spec, run=run).build().to(devices.device).eval()
    for task in waiting:
        read_examples(model, task, *devices.on_first(partial(_encoded, job, task, start, devices)))


def _encoded(job: Job, task: str, start: MultiTaskModel, devices: Devices) -> tuple[Tensor, Tensor, Tensor]:
    """Encodings, labels and presence of the task's examples, on the CPU."""
    pieces = list(_examples(job, task))
    if not pieces:
        raise DataError(f"task {task!r}: no training row has a label, and its gates read labelled examples")
    encodings = []
    for piece in pieces:
        inputs = piece.to(devices.device).inputs
        with torch.no_grad():
            encodings.append(start.representation(inputs, [task], **named_stem(start, piece.source)).cpu())
    labels, present = (torch.cat([getattr(piece, what)[task] for piece in pieces]) for what in ("labels", "present"))
    return torch.cat(encodings), labels, present


def _examples(job: Job, task: str) -> Iterator[Batch]:
    """The task's first labelled rows in an order that is the same for all tasks of the same sources."""
    splits = {name: job.data.sources[name].splits["train"] for name in job.sources[task]}
    size, left = max(_BATCH, len(splits)), ROWS
    for pieces in Mixture(splits, MixtureSpec(), size, Noise(0, "examples").torch_seed()).batches(0):
        for piece in pieces:
            known = piece.present[task].reshape(len(piece), -1).any(1)
            labelled = piece.at(known.nonzero().flatten()[:left])
            left -= len(labelled)
            if len(labelled):
                yield labelled
        if left == 0:
            return
