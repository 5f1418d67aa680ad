"""A run directory: RUN/{recipe.yaml, events.jsonl, results.json, checkpoints/step-N/, last, best}."""

import os
from pathlib import Path

from polytask.checkpoints.directory import TEMPORARY
from polytask.core.errors import CheckpointError


def list_checkpoints(run: Path) -> list[Path]:
    """The finished checkpoints of a run, by step."""
    found = [path for path in (Path(run) / "checkpoints").glob("step-*") if path.is_dir()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


def point(run: Path, name: str, checkpoint: Path) -> None:
    """Makes RUN/name (last, best) point to a checkpoint, in one step."""
    temporary = Path(run) / f"{TEMPORARY}{name}-{os.getpid()}"
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(os.path.relpath(checkpoint, run))
    os.replace(temporary, Path(run) / name)


def pointed(run: Path, name: str) -> Path | None:
    """The checkpoint that RUN/name points to, or None."""
    link = Path(run) / name
    return link.resolve() if link.is_symlink() and link.exists() else None


def resolve(path: Path) -> Path:
    """The checkpoint meant by a path: itself, or the best (else last) checkpoint of a run directory."""
    path = Path(path)
    if not path.exists():
        raise CheckpointError(f"{path}: no such directory")
    if (path / "card.json").exists():
        return path
    best = pointed(path, "best") or pointed(path, "last")
    if best is None:
        raise CheckpointError(
            f"{path}: neither a checkpoint directory (card.json) nor a run with a finished checkpoint (best, last)"
        )
    return best
