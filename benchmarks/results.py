"""results/EXPERIMENT/DATE-COMMIT.json: every result, with what it came from. Files are added, never changed."""

import subprocess
from pathlib import Path
from typing import Any

from polytask.checkpoints.directory import json_bytes, read_json, write_file
from polytask.core.errors import CheckpointError

FOLDER = Path(__file__).resolve().parent / "results"
ROOT = FOLDER.parent.parent


def commit() -> str:
    """The commit that the code is at, with "-changed" where code or experiments differ from it."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    changed = git("status", "--porcelain", "--", "src", "benchmarks", ":!benchmarks/results")
    return git("rev-parse", "--short=12", "HEAD") + ("-changed" if changed else "")


def new_path(experiment: str, date: str, commit: str, folder: Path = FOLDER) -> Path:
    """Where a result goes.

    Raises:
        CheckpointError: there is one already.
    """
    path = folder / experiment / f"{date}-{commit}.json"
    if path.exists():
        raise CheckpointError(
            f"{path}: this experiment has a result of this day and commit, and results are never overwritten"
        )
    return path


def append(path: Path, record: dict[str, Any]) -> None:
    """Adds a result; `path` comes from `new_path`."""
    new_path(path.parent.name, path.stem[:10], path.stem[11:], path.parent.parent)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, json_bytes(record))


def newest(experiment: str, folder: Path = FOLDER) -> dict[str, Any] | None:
    """The result that was measured last; its own time decides, not the file's."""
    records = [read_json(path) for path in sorted((folder / experiment).glob("*.json"))]
    return max(records, key=lambda record: record["provenance"]["date"], default=None)


def compact(results: dict[str, Any]) -> dict[str, Any]:
    """A comparison's results without the paths of its runs, which are not kept."""
    rows = [
        {
            **row,
            "runs": [
                {key: value for key, value in run.items() if key not in ("run", "runs_by_task")} for run in row["runs"]
            ],
        }
        for row in results["rows"]
    ]
    return {**results, "rows": rows}
