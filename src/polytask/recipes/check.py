"""Runs a shipped recipe for two steps on a few rows: does everything that it names exist, and fit together?"""

import shutil
from pathlib import Path

from polytask.core.errors import CheckpointError, DataError, MissingExtra, MissingInput
from polytask.recipes.reading import read_recipe
from polytask.recipes.run import train
from polytask.tasks.sources.opening import resolve

STEPS = 2
ROWS = {"train": 1000, "valid": 200, "test": 200}  # of each source


def check_recipe(name: str, out: Path, data_dir: Path | None) -> str:
    """What happened, in words; a recipe whose data or packages are not there is skipped, any other failure raised."""
    try:
        read = read_recipe(name)
        for source in read.recipe.data.named_sources().values():
            located = source.table or source.images or source.arrays
            if located is not None:
                resolve(located, data_dir, read.beside)
    except (DataError, MissingExtra) as error:
        return f"skipped ({error})"
    _remove_earlier(out)
    stages = ["train"] if "train" in read.values else [f"stages.{i}" for i in range(len(read.recipe.stages))]
    settings: dict[str, object] = {"data.rows": ROWS}
    for stage in stages:
        settings |= {f"{stage}.epochs": None, f"{stage}.steps": STEPS}
    try:
        results = train(name, out=out, data_dir=data_dir, settings=settings)
    except (MissingExtra, MissingInput) as error:  # a pretrained model that is not on this machine
        return f"skipped ({error})"
    return f"{results['steps']} steps, {len(results['tasks'])} tasks, score {_number(results['score'])}"


def _remove_earlier(out: Path) -> None:
    if not out.exists():
        return
    if not (out / "recipe.yaml").is_file():
        raise CheckpointError(f"{out}: exists and is no run; name another directory with --out")
    shutil.rmtree(out)


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"
