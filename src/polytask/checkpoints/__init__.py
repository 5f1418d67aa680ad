"""The one directory format, for trained and merged models alike: write, verify, read, list."""

from polytask.checkpoints.checkpoint import (
    Checkpoint,
    read_checkpoint,
    update_card,
    verify_checkpoint,
    write_checkpoint,
)
from polytask.checkpoints.directory import atomic_directory, remove_directory, remove_unfinished
from polytask.checkpoints.runs import list_checkpoints, point, pointed, resolve

__all__ = [
    "Checkpoint",
    "atomic_directory",
    "list_checkpoints",
    "point",
    "pointed",
    "read_checkpoint",
    "remove_directory",
    "remove_unfinished",
    "resolve",
    "update_card",
    "verify_checkpoint",
    "write_checkpoint",
]
