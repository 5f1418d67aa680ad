"""A run directory: RUN/{recipe.yaml, events.jsonl, results.json, checkpoints/step-N/, last, best}."""

import os
from pathlib import Path

from polytask.checkpoints.checkpoint import CARD
from polytask.checkpoints.directory import TEMPORARY
from polytask.core.errors import CheckpointError, nearest_beside


def list_checkpoints(run: Path) -> list[Path]:
    """The finished checkpoints of a run, by step."""
    found = {path: path.name.removeprefix("step-") for path in (Path(run) / "checkpoints").glob("step-*")}
    finished = [path for path, step in found.items() if step.isdecimal() and (path / CARD).exists()]
    return sorted(finished, key=lambda path: int(found[path]))


def point(run: Path, name: str, checkpoint: Path) -> None:
    """Makes RUN/name (last, best) point to a checkpoint, in one step."""
    temporary = Path(run) / f"{TEMPORARY}{name}-{os.getpid()}"
    try:
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(os.path.relpath(checkpoint, run))
        os.replace(temporary, Path(run) / name)
    except OSError as error:
        raise CheckpointError(f"{run}: {name} could not be written ({error.strerror or error})") from error


def pointed(run: Path, name: str) -> Path | None:
    """The checkpoint that RUN/name points to, or None."""
    link = Path(run) / name
    return link.resolve() if link.is_symlink() and link.exists() else None


def resolve(path: Path) -> Path:
    """The checkpoint meant by a path: itself, or the best (else last) checkpoint of a run directory."""
    path = Path(path)
    if not path.exists():
        raise CheckpointError(f"{path}: no such directory{nearest_beside(path, folders_only=True)}")
    if (path / "card.json").exists():
        return path
    best = pointed(path, "best") or pointed(path, "last")
    if best is None:
        raise CheckpointError(
            f"{path}: neither a checkpoint directory (card.json) nor a run with a finished checkpoint (best, last)"
        )
    return best
