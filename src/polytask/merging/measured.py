"""What a learned merge measures of each task's model: measured once, kept in files, and read again without data.

FOLDER/METHOD/TASK.safetensors      the tensors, with what they were measured of and how
"""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import torch
from torch import Tensor

from polytask.checkpoints.directory import write_file
from polytask.checkpoints.tensors import read_state, state_bytes
from polytask.core.errors import CheckpointError
from polytask.merging.session import MergeSession

VERSION = 2
SAMPLED = 4096
"""Elements of each tensor that identify a model."""


def measured(
    session: MergeSession,
    method: str,
    folder: str | None,
    settings: Mapping[str, Any],
    measure: Callable[[str], Mapping[str, Tensor]],
) -> dict[str, dict[str, Tensor]]:
    """task -> tensors, from the folder's files where there are any; others are measured, and written there.

    Args:
        session: whose tasks are measured.
        method: the folder's name.
        folder: None keeps nothing.
        settings: what the measurement depends on beside the model and the data.
        measure: of one task.

    Raises:
        CheckpointError: a file of another model, other data or settings, or a damaged one.
    """
    found: dict[str, dict[str, Tensor]] = {}
    for number, task in enumerate(session.tasks):
        path = None if folder is None else Path(folder) / method / f"{quote(task, safe='')}.safetensors"
        about = {
            "version": VERSION,
            "method": method,
            "model": _fingerprint(session, task),
            "data": session.samples.facts(task),
            **settings,
        }
        if path is not None and path.exists():
            found[task] = _read(path, about)
        else:
            found[task] = dict(measure(task))
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                write_file(path, state_bytes({"about": about, "tensors": found[task]}))
        session.say(number + 1, len(session.tasks))
    return found


def _read(path: Path, about: Mapping[str, Any]) -> dict[str, Tensor]:
    kept = read_state(path)
    for key, value in about.items():
        said = kept["about"].get(key, "unknown")
        if said != value:
            raise CheckpointError(
                f"{path}: was measured with {key} {said}, and this merge has {value}; name another folder, or remove "
                "the file"
            )
    return kept["tensors"]


def _fingerprint(session: MergeSession, task: str) -> str:
    """Of the first elements of every tensor of a task's model."""
    digest = hashlib.sha256()
    for name in session.vectors.names:
        own = session.vectors.model(task, name).flatten()[:SAMPLED]
        digest.update(f"{name} {list(session.vectors.shape(name))}".encode())
        digest.update(own.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
