"""The one directory format, for trained and merged models alike: write, verify, read, list."""

from polytask.checkpoints.checkpoint import Checkpoint, read_checkpoint, verify_checkpoint, write_checkpoint
from polytask.checkpoints.directory import atomic_directory
from polytask.checkpoints.runs import list_checkpoints, point, pointed, resolve

__all__ = [
    "Checkpoint",
    "atomic_directory",
    "list_checkpoints",
    "point",
    "pointed",
    "read_checkpoint",
    "resolve",
    "verify_checkpoint",
    "write_checkpoint",
]
