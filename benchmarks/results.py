"""results/EXPERIMENT/DATE-COMMIT.json: every result, with what it came from. Files are added, never changed."""

import subprocess
from collections.abc import Mapping, Sequence
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


def joined(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The rows of several comparisons as one comparison's results.

    Raises:
        CheckpointError: they differ in the recipe, its settings, the seeds or the learning rates; or a row of both has
            other scores in one than in the other: something has changed, and the rows cannot stand side by side.
    """
    first, *others = records
    rows = {row["name"]: row for row in first["results"]["rows"]}
    for record in others:
        where = f"the results of {first['experiment']} and {record['experiment']} cannot be joined"
        for key in ("recipe", "settings", "seeds", "learning_rate_multiples", "parameters"):
            if first["definition"].get(key) != record["definition"].get(key):
                raise CheckpointError(f"{where}: {key} differ")
        for row in record["results"]["rows"]:
            if _scores(row) != _scores(rows.setdefault(row["name"], row)):
                raise CheckpointError(f"{where}: {row['name']} has other scores; measure both again at one commit")
    return {**first["results"], "rows": list(rows.values())}


def _scores(row: Mapping[str, Any]) -> list[Any]:
    return [(run["seed"], run["learning_rate"], run["valid"], run["test"]) for run in row["runs"]]
