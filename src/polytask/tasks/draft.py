"""A first recipe for a table: guesses about its columns, and what to check about each guess."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from polytask.core.errors import DataError, UnknownName
from polytask.tasks.data_spec import SPLITS
from polytask.tasks.draft_features import draft_features, is_input
from polytask.tasks.draft_labels import draft_task, label_columns, task_name
from polytask.tasks.draft_leaks import leaks
from polytask.tasks.sources.arrays import rows_from_npz
from polytask.tasks.sources.raw import RawRows
from polytask.tasks.sources.table import open_table

SAMPLE_ROWS = 20_000
STEPS_AN_EPOCH = 32  # at least, where that leaves a batch of 16 rows or more
_SPLIT_NAMES = ("split", "fold", "partition", "subset")
_SPLIT_VALUES = (*SPLITS, "validation", "val", "dev", "training", "testing")


@dataclass
class Draft:
    """What `polytask init` writes.

    Attributes:
        recipe: the recipe.
        remarks: one line a guess that somebody should check, `path.in.recipe: what`.
        origin: the key of `data` that names the file.
    """

    recipe: dict[str, Any]
    remarks: list[str] = field(default_factory=list)
    origin: str = "table"


def draft_recipe(path: Path, tasks: Sequence[str] | None = None) -> Draft:
    """Reads the beginning of a table (file, directory or glob) or of an .npz file and guesses.

    Args:
        path: the table.
        tasks: the label columns, where somebody knows them.

    Raises: DataError when the table cannot be read or no column looks like a label; UnknownName for a label column that
        is not there.
    """
    path = Path(path)
    rows: RawRows = rows_from_npz(path) if path.suffix.lower() == ".npz" else open_table(path)
    sample = rows.slice(0, SAMPLE_ROWS, list(rows.schema))
    draft = Draft({"version": 1}, origin="arrays" if path.suffix.lower() == ".npz" else "table")
    split_column = _split_column(sample)
    for task in tasks or ():
        if task not in rows.schema:
            raise UnknownName("column", task, rows.schema, f"{rows.where}, --tasks")
    columns = sample.select([column for column in sample.columns if column != split_column])
    labels = list(tasks) if tasks else label_columns(columns, draft.remarks, rows.where)
    features = draft_features(columns.drop(labels), draft.remarks)
    if not features.kinds:
        raise DataError(f"{rows.where}: no column is left to predict from (labels: {', '.join(labels)})")
    if "path" in features.kinds.values():
        draft.origin = "images"
    data: dict[str, Any] = {draft.origin: path.name, "split": split_column or {"fractions": [0.8, 0.1, 0.1], "seed": 0}}
    if split_column is None:
        draft.remarks.append(_split_remark(columns.drop(labels), features.identifiers))
    if features.drop:
        data["drop"] = features.drop
    if features.declared:
        data["features"] = features.declared
    kept = [column for column in features.kinds if not is_input(features.kinds[column])]
    draft.remarks += leaks(columns, labels, kept)
    if sum(_is_number(column) for column in sample.columns) * 2 > len(sample.columns):
        draft.remarks.append(f"data.{draft.origin}: most column names are numbers; is the first line a header?")
    draft.recipe["data"] = data
    draft.recipe["tasks"] = {task_name(column): draft_task(columns[column], draft.remarks) for column in labels}
    draft.recipe["model"] = {"encoder": _encoder(list(features.kinds.values()), draft.remarks), "sharing": "hard"}
    draft.recipe["train"] = _train(draft.recipe["model"]["encoder"]["kind"], len(rows))
    return draft


def _split_column(sample: pl.DataFrame) -> str | None:
    for column in sample.columns:
        named = column.lower() in _SPLIT_NAMES and sample[column].dtype == pl.String
        if named and sample[column].drop_nulls().is_in(list(_SPLIT_VALUES)).all():
            return column
    return None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _split_remark(sample: pl.DataFrame, identifiers: Sequence[str]) -> str:
    dates = [column for column in sample.columns if sample[column].dtype.is_temporal()]
    ways = [f"{{time: {dates[0]}}} tests on the latest rows"] if dates else []
    if identifiers:
        ways.append(f"{{group: {identifiers[0]}}} keeps the rows of one {identifiers[0]} together")
    if not ways:
        ways = ["{time: column} and {group: column} are the other ways, {column: name} where one says it"]
    return f"data.split: at random; {'; '.join(ways)}"


def _encoder(kinds: list[str], remarks: list[str]) -> dict[str, Any]:
    if "text" in kinds:
        remarks.append(
            "model.encoder: name the pretrained encoder: a Hugging Face directory, a hub id in the local cache, or "
            "package:NAME/FOLDER"
        )
        pretrained = "sentence-transformers/all-MiniLM-L6-v2"
        return {"kind": "transformer", "pretrained": pretrained, "trainable": {"last": 2}}
    if "image" in kinds or "path" in kinds:
        return {"kind": "conv"}
    if "categorical" in kinds:
        return {"kind": "tabular", "hidden_sizes": [256, 128]}
    return {"kind": "mlp", "hidden_sizes": [256, 128]}


def _train(encoder: str, rows: int) -> dict[str, Any]:
    """A pretrained encoder learns at a lower rate and for fewer epochs; a small table takes small batches."""
    most, rate, epochs = (64, 2.0e-4, 3) if encoder == "transformer" else (256, 1.0e-3, 10)
    batch_size = 16
    while batch_size * 2 <= min(most, rows // STEPS_AN_EPOCH):
        batch_size *= 2
    optimizer = {"kind": "adamw", "lr": rate}
    return {"rule": "equal", "optimizer": optimizer, "epochs": epochs, "batch_size": batch_size, "seed": 0}
