"""A first recipe for a table: guesses about its columns, and what to check about each guess."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from polytask.core.errors import DataError
from polytask.tasks.data_spec import SPLITS
from polytask.tasks.features.choose import is_free_text
from polytask.tasks.sources.table import open_table

SAMPLE_ROWS = 20_000
MOST_CLASSES = 20
LABEL_NAMES = (
    "label",
    "labels",
    "target",
    "y",
    "class",
    "outcome",
    "click",
    "clicked",
    "conversion",
    "converted",
    "response",
)
_SPLIT_NAMES = ("split", "fold", "partition", "subset")
_SPLIT_VALUES = (*SPLITS, "validation", "val", "dev", "training", "testing")
_SMILES = r"^[A-Za-z0-9@+\-\[\]\(\)=#$:/\\.%*]+$"
_SMILES_SIGNS = r"[=#\[\(]|[CcNnOo]1"
_WORDS = 3  # a text has at least so many words on average


@dataclass
class Draft:
    """Attributes: recipe: what `polytask init` writes; remarks: one line a guess that somebody should check."""

    recipe: dict[str, Any]
    remarks: list[str] = field(default_factory=list)


def draft_recipe(path: Path) -> Draft:
    """Reads the beginning of a table (file, directory or glob) and guesses.

    Raises: DataError when the table cannot be read or no column looks like a label.
    """
    path = Path(path)
    table = open_table(path)
    sample = table.slice(0, SAMPLE_ROWS, list(table.schema))
    draft = Draft({"version": 1})
    split_column = _split_column(sample)
    labels = _label_columns(sample, split_column, draft.remarks, table.where)
    rest = [column for column in sample.columns if column not in (*labels, split_column)]
    data: dict[str, Any] = {"table": path.name, "split": split_column or {"fractions": [0.8, 0.1, 0.1], "seed": 0}}
    drop, features, kinds = _features(sample.select(rest), draft.remarks)
    if split_column is None:
        draft.remarks.append(_split_remark(sample.select(rest)))
    if drop:
        data["drop"] = drop
    if features:
        data["features"] = features
    draft.recipe["data"] = data
    draft.recipe["tasks"] = {column: _task(sample[column], draft.remarks) for column in labels}
    draft.recipe["model"] = {"encoder": _encoder(kinds, draft.remarks), "sharing": "hard"}
    optimizer = {"kind": "adamw", "lr": 1.0e-3}
    draft.recipe["train"] = {"rule": "equal", "optimizer": optimizer, "epochs": 10, "batch_size": 256, "seed": 0}
    return draft


def _split_column(sample: pl.DataFrame) -> str | None:
    for column in sample.columns:
        named = column.lower() in _SPLIT_NAMES and sample[column].dtype == pl.String
        if named and sample[column].drop_nulls().is_in(list(_SPLIT_VALUES)).all():
            return column
    return None


def _label_columns(sample: pl.DataFrame, split_column: str | None, remarks: list[str], where: str) -> list[str]:
    columns = [column for column in sample.columns if column != split_column]
    named = [
        column
        for column in columns
        if column.lower() in LABEL_NAMES or column.lower().startswith(("label_", "target_"))
    ]
    if named:
        remarks.append(f"tasks: taken by their names: {', '.join(named)}; add the others, take out what is no label")
        return named
    last: list[str] = []
    for column in reversed(columns):
        if not _few_values(sample[column]):
            break
        last.insert(0, column)
    if last and len(last) < len(columns):
        remarks.append(
            f"tasks: no column has a usual name; {last[-1]!r} is the last column and has few values; check it"
        )
        return last[-1:]
    if columns and sample[columns[-1]].dtype.is_float() and len(columns) > 1:
        remarks.append(f"tasks: no column has a usual name; {columns[-1]!r} is the last column and a number; check it")
        return columns[-1:]
    raise DataError(
        f"{where}: no column looks like a label (found {', '.join(columns)}); "
        f"rename it to one of {', '.join(LABEL_NAMES[:4])}, or write the recipe by hand"
    )


def _few_values(series: pl.Series) -> bool:
    simple = series.dtype.is_integer() or series.dtype in (pl.Boolean, pl.String, pl.Categorical, pl.Enum)
    return simple and 2 <= series.drop_nulls().n_unique() <= MOST_CLASSES


def _task(series: pl.Series, remarks: list[str]) -> dict[str, Any]:
    values = series.drop_nulls()
    if values.dtype.is_float() and len(values):
        values = values.filter(values.is_finite())
        if (values == values.floor()).all() and values.n_unique() <= MOST_CLASSES:
            values = values.cast(pl.Int64)  # whole numbers in a column that has missing ones
    distinct = values.n_unique()
    place = f"tasks.{series.name}"
    if series.null_count():
        remarks.append(
            f"{place}: {series.null_count()} of {len(series)} labels are missing; they are left out of the loss"
        )
    if distinct == 2 and not values.dtype.is_float():
        found = values.unique().sort().to_list()
        if found in ([0, 1], [False, True]):
            return {"kind": "binary"}
        rarer = min(found, key=lambda value: int((values == value).sum()))
        remarks.append(f"{place}: values {found[0]!r} and {found[1]!r}; the rarer is taken as positive")
        return {"kind": "binary", "positive": rarer}
    if distinct <= MOST_CLASSES and not values.dtype.is_float():
        remarks.append(f"{place}: {distinct} values, taken as classes; kind: regression if they are amounts")
        return {"kind": "multiclass"}
    if values.dtype.is_numeric():
        remarks.append(f"{place}: numbers with {distinct} values, taken as a regression")
        return {"kind": "regression"}
    remarks.append(f"{place}: {distinct} classes, which are many; check that this is a label")
    return {"kind": "multiclass"}


def _features(sample: pl.DataFrame, remarks: list[str]) -> tuple[list[str], dict[str, Any], list[str]]:
    """(dropped columns, features to declare, kinds of all)."""
    drop: list[str] = []
    features: dict[str, Any] = {}
    kinds: list[str] = []
    for column in sample.columns:
        kind = _feature_kind(sample[column])
        if kind == "drop":
            drop.append(column)
            remarks.append(
                f"data.drop: {column!r} has another value in nearly every row, or none: taken as an identifier"
            )
            continue
        kinds.append(kind)
        if kind in ("text", "image"):
            features[column] = {"kind": kind}
        elif kind == "morgan":
            features[column] = {"kind": "morgan", "radius": 2, "bits": 2048}
        if kind in ("text", "morgan", "image"):
            remarks.append(f"data.features: {column!r} looks like {_LOOKS[kind]}")
    return drop, features, kinds


_LOOKS = {"text": "text", "morgan": "molecules in SMILES notation", "image": "encoded images"}


def _feature_kind(series: pl.Series) -> str:
    known = series.drop_nulls()
    if not len(known):
        return "drop"
    if series.dtype == pl.Binary:
        return "image"
    if series.dtype == pl.String:
        if "smiles" in series.name.lower() or _looks_like_smiles(known):
            return "morgan"
        if not is_free_text(series):
            return "categorical"
        return "text" if known.str.count_matches(r"\S+").to_numpy().mean() >= _WORDS else "drop"
    if series.dtype.is_integer() and _is_identifier(series):
        return "drop"
    if isinstance(series.dtype, pl.List | pl.Array):
        return "list"
    return "categorical" if series.dtype in (pl.Boolean, pl.Categorical, pl.Enum) else "numeric"


def _looks_like_smiles(texts: pl.Series) -> bool:
    share: Callable[[str], float] = lambda pattern: float(texts.str.contains(pattern).to_numpy().mean())  # noqa: E731
    return is_free_text(texts) and share(_SMILES) > 0.95 and share(_SMILES_SIGNS) > 0.5


def _is_identifier(series: pl.Series) -> bool:
    name = series.name.lower()
    named = name in ("id", "index", "row", "key", "uuid") or name.endswith(("_id", "id_"))
    return named and series.n_unique() > 0.9 * len(series)


def _split_remark(sample: pl.DataFrame) -> str:
    dates = [column for column in sample.columns if sample[column].dtype.is_temporal()]
    if dates:
        return f"data.split: at random; split: {{time: {dates[0]}}} tests on the latest rows instead"
    return (
        "data.split: at random; {time: column} and {group: column} are the other ways, {column: name} where one says it"
    )


def _encoder(kinds: list[str], remarks: list[str]) -> dict[str, Any]:
    if "text" in kinds:
        remarks.append("model.encoder: name the pretrained encoder: a Hugging Face directory or hub id")
        return {"kind": "transformer", "pretrained": "sentence-transformers/all-MiniLM-L6-v2"}
    if "image" in kinds:
        return {"kind": "conv"}
    if "categorical" in kinds:
        return {"kind": "tabular", "hidden_sizes": [256, 128]}
    return {"kind": "mlp", "hidden_sizes": [256, 128]}
