"""Starting a new model from a checkpoint directory."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from polytask.core.errors import CheckpointError
from polytask.sharing.layers import TaskModules


@dataclass(frozen=True)
class Start:
    """What a model took from a checkpoint.

    Attributes:
        loaded: names of the tensors that were copied.
        fresh: the model's tensors of tasks that the checkpoint lacks; they keep their random start.
        unused: the checkpoint's tensors of tasks that the model lacks.
    """

    loaded: tuple[str, ...]
    fresh: tuple[str, ...]
    unused: tuple[str, ...]


def initialise_from(model: nn.Module, directory: str | Path) -> Start:
    """Copies the directory's tensors into the model, by name. See `initialise`."""
    from polytask.checkpoints import read_checkpoint, resolve

    return initialise(model, read_checkpoint(resolve(Path(directory))).tensors(), str(directory))


def initialise(model: nn.Module, tensors: Mapping[str, Tensor], where: str) -> Start:
    """Copies tensors into the model, by name.

    Parts of a task that only one side has are left alone and reported, and so are the model's attachments that the
    checkpoint has nothing of; anything else that does not match is an error.

    Raises:
        CheckpointError: a tensor of another shape, one that is missing, one that the model has no place for.
    """
    own = model.state_dict()
    places = [f"{name}." for name, module in model.named_modules() if isinstance(module, TaskModules)]
    fresh = [name for name in own if name not in tensors]
    unused = [name for name in tensors if name not in own]
    for kind, names, others, inside in (
        ("lacks", fresh, tensors, [*places, "attachments."]),
        ("holds, and the model lacks,", unused, own, places),
    ):
        wrong = [name for name in names if not _of_absent_task(name, inside, others)]
        if wrong:
            more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
            raise CheckpointError(
                f"init_from {where}: the checkpoint {kind} {wrong[0]!r}{more}; is it of another model?"
            )
    loaded = [name for name in own if name in tensors]
    for name in loaded:
        if tensors[name].shape != own[name].shape:
            found, expected = list(tensors[name].shape), list(own[name].shape)
            raise CheckpointError(f"init_from {where}: {name!r} is {found} there; the model has {expected}")
    with torch.no_grad():
        for name in loaded:
            own[name].copy_(tensors[name])
    return Start(tuple(loaded), tuple(fresh), tuple(unused))


def _of_absent_task(name: str, places: list[str], others: Mapping[str, Tensor]) -> bool:
    """True if `name` belongs to a task (or attachment) of which the other side has nothing in that place."""
    for place in places:
        if name.startswith(place):
            task = place + name.removeprefix(place).split(".")[0] + "."
            return not any(other.startswith(task) for other in others)
    return False
