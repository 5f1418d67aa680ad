"""What a store costs in accuracy: each model that it gives back beside the model that went in, on validation rows."""

import json
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from polytask.checkpoints import read_checkpoint
from polytask.checkpoints.directory import json_bytes
from polytask.core.errors import Inconsistent, PolytaskError
from polytask.evaluation.scores import evaluate
from polytask.evaluation.trained import Trained, load
from polytask.merging.stores.unpacking import get
from polytask.recipes.reading import read_recipe
from polytask.tasks.data import Data, load_data
from polytask.tasks.features.text import TOKENIZER_FILE
from polytask.tasks.metrics import METRICS

_BATCH = 256


def scores_kept(store: Path, models: Mapping[str, str], *, data_dir: Path | None = None) -> dict[str, Any]:
    """Scores every model of the store whose checkpoint says where its rows are.

    Args:
        store: what `pack` wrote.
        models: name in the store -> the polytask checkpoint that went in.
        data_dir: where the recipes' paths are looked for first.
    Returns: name -> {task: {"metric", "higher_is_better", "before", "after"}}, a task's metric undefined where it is
        None; or name -> {"not_scored": why}.
    """
    found: dict[str, Any] = {}
    for name, path in models.items():
        try:
            expert = load(path)
            data = data_of(expert, data_dir)
        except PolytaskError as error:  # rows that came from Python, a folder that is gone
            found[name] = {"not_scored": str(error)}
            continue
        with TemporaryDirectory(prefix="polytask-store-") as folder:
            get(store, name, Path(folder) / "model")
            after = _scores(load(Path(folder) / "model"), data)
        before = _scores(expert, data)
        found[name] = {
            task: {
                "metric": target.task.metric,
                "higher_is_better": METRICS[target.task.metric].higher_is_better,
                "before": before[task],
                "after": after[task],
            }
            for task, target in expert.targets.items()
        }
    return found


def data_of(trained: Trained, data_dir: Path | None) -> Data:
    """The rows that a checkpoint was trained on, from its recipe.

    Raises: MissingInput where they came from Python, DataError where they are gone, Inconsistent where they changed.
    """
    recipe = read_recipe(trained.recipe).recipe
    tokenizer = str(trained.path) if (trained.path / TOKENIZER_FILE).is_file() else None
    data = load_data(recipe.data, recipe.task_list, data_dir=data_dir, beside=None, tokenizer=tokenizer)
    if json.loads(json_bytes(data.to_json())) != read_checkpoint(trained.path).inputs:
        raise Inconsistent(f"{trained.path}: the rows that its recipe names are not those that it was trained on")
    return data


def _scores(trained: Trained, data: Data) -> dict[str, float | None]:
    splits = {name: source.splits["valid"] for name, source in data.sources.items()}
    metrics, _ = evaluate(trained.model, splits, trained.targets, _BATCH)
    return {task: metrics[task][target.task.metric] for task, target in trained.targets.items()}
