"""Gradient-boosted trees, one model a task, on a recipe's own table, features and splits.

What one would use today for such a table, and so the mark that a neural network has to be seen beside. Settings are
chosen on the validation split, for each task by itself, from a small grid; the number of trees too.
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from polytask.core.errors import BadValue
from polytask.recipes.reading import read_recipe
from polytask.tasks.task import Task

GRID = {"learning_rate": (0.05, 0.1), "max_leaf_nodes": (15, 31, 63)}
MOST_TREES = 500
_EVERY = 25  # trees between two looks at the validation split
SPLITS = ("train", "valid", "test")


def measure(
    recipe: str,
    data_dir: Path,
    *,
    grid: Mapping[str, Sequence[Any]] | None = None,
    most_trees: int = MOST_TREES,
    rows: int | None = None,
) -> dict[str, Any]:
    """AUC on validation and test for each task of a recipe with one table, a split column and binary tasks.

    Args:
        recipe: a shipped recipe's name.
        data_dir: the data folder.
        grid, most_trees: what is tried.
        rows: only the first rows of the table, to try the code.
    """
    read = read_recipe(recipe).recipe
    spec, tasks = read.data, read.task_list
    if spec.table is None or spec.split is None or spec.split.kind != "column":
        raise BadValue("the data of a recipe for trees", spec.origin, "one table with a split column")
    frame = pl.read_parquet(data_dir / spec.table, n_rows=rows)
    labels = [column for task in tasks for column in task.columns]
    features = frame.drop([*labels, *spec.drop, spec.split.by])
    split = frame[spec.split.by].to_numpy()
    encoded, categorical = encode(features, split == "train")
    grid = grid or GRID
    settings = [
        {"learning_rate": rate, "max_leaf_nodes": leaves}
        for rate in grid["learning_rate"]
        for leaves in grid["max_leaf_nodes"]
    ]
    by_task = {}
    for task in tasks:
        y = (frame[task.label_columns[0]] == task.positive).to_numpy()
        by_task[task.name] = _best(task, encoded, categorical, y, split, settings, most_trees)
    return {"recipe": recipe, "features": features.width, "most_trees": most_trees, "tasks": by_task}


def encode(features: pl.DataFrame, train: np.ndarray) -> tuple[np.ndarray, list[bool]]:
    """Numbers as they are, text as the index of its value among those of training; an unseen value is missing."""
    columns, categorical = [], []
    for series in features:
        is_text = series.dtype == pl.String
        if is_text:
            values = series.filter(pl.Series(train)).unique().drop_nulls().sort()
            series = series.cast(pl.Enum(values), strict=False).to_physical()
        columns.append(series.cast(pl.Float64).to_numpy())
        categorical.append(is_text)
    return np.stack(columns, axis=1), categorical


def _best(
    task: Task,
    features: np.ndarray,
    categorical: list[bool],
    y: np.ndarray,
    split: np.ndarray,
    settings: Sequence[Mapping[str, Any]],
    most_trees: int,
) -> dict[str, Any]:
    """The settings and number of trees with the best validation AUC, and the test AUC of that model alone."""
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.metrics import roc_auc_score

    if task.kind != "binary":
        raise BadValue(f"the kind of task {task.name!r}", task.kind, "binary")
    x = {name: features[split == name] for name in SPLITS}
    labels = {name: y[split == name] for name in SPLITS}
    start, tried, best, chosen = time.perf_counter(), [], -1.0, None
    for setting in settings:
        model = HistGradientBoostingClassifier(
            **setting, max_iter=most_trees, early_stopping=False, categorical_features=categorical, random_state=0
        )
        model.fit(x["train"], labels["train"])
        for number, probability in enumerate(model.staged_predict_proba(x["valid"]), start=1):
            if number % min(_EVERY, most_trees) == 0:
                score = float(roc_auc_score(labels["valid"], probability[:, 1]))
                tried.append({**setting, "trees": number, "valid": score})
                if score > best:
                    best, chosen = score, (model, tried[-1])
    assert chosen is not None
    model, setting = chosen
    stages = model.staged_predict_proba(x["test"])
    probability = next(p for number, p in enumerate(stages, start=1) if number == setting["trees"])
    return {
        "metric": "auroc",
        "valid": best,
        "test": float(roc_auc_score(labels["test"], probability[:, 1])),
        "settings": {key: value for key, value in setting.items() if key != "valid"},
        "tried": tried,
        "seconds": time.perf_counter() - start,
    }
