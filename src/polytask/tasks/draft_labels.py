"""Guesses for `polytask init`: which columns are labels, and of what kind."""

import re
from typing import Any

import polars as pl

from polytask.core.errors import DataError
from polytask.tasks.draft_features import encodes_alone, feature_kind, is_input

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
    "rating",
)
_LABEL_PREFIXES = ("label_", "target_", "lbl", "y_")
_NO_VALUE = ("", "na", "n/a", "nan", "none", "null", "unknown", "?", "-")


def label_columns(sample: pl.DataFrame, remarks: list[str], where: str) -> list[str]:
    """The first that finds something: usual names; what stands beside a text, image or molecule; the last columns."""
    for guess in (_named, _beside_an_input, _numbered, _last):
        found, why = guess(sample)
        if found:
            remarks.append(f"tasks: {why}; --tasks A,B names them instead")
            return found
    raise DataError(
        f"{where}: no column looks like a label (found {', '.join(sample.columns)}); --tasks A,B names the labels"
    )


def task_name(column: str) -> str:
    """A column's name as a task may be called."""
    return re.sub(r"[./\\]", "_", column).strip() or "label"


def draft_task(series: pl.Series, remarks: list[str]) -> dict[str, Any]:
    """What the recipe says about a label column."""
    name = task_name(series.name)
    label = {} if name == series.name else {"label": series.name}
    place = f"tasks.{name}"
    absent, ignored = series.null_count(), _word_for_nothing(series)
    values = series.drop_nulls()
    if ignored is not None:
        label["ignore"] = ignored
        absent += int((values == ignored).sum())
        values = values.filter(values != ignored)
        remarks.append(f"{place}: {ignored!r} is taken as no label")
    if absent:
        remarks.append(f"{place}: {absent} of {len(series)} labels are missing; they are left out of the loss")
    if values.dtype.is_float() and len(values):
        values = values.filter(values.is_finite())
        if has_few_values(values):
            values = values.cast(pl.Int64)  # whole numbers in a column that has missing ones
    return {**_kind(values, place, remarks), **label}


def has_few_values(series: pl.Series) -> bool:
    """Two to MOST_CLASSES different ones, of a type that classes can have."""
    known = series.drop_nulls()
    if known.dtype.is_float():
        known = known.filter(known.is_finite())
        if not (known == known.floor()).all():
            return False
    simple = known.dtype.is_numeric() or known.dtype in (pl.Boolean, pl.String, pl.Categorical, pl.Enum)
    return simple and 2 <= known.n_unique() <= MOST_CLASSES


def _kind(values: pl.Series, place: str, remarks: list[str]) -> dict[str, Any]:
    distinct = values.n_unique()
    if distinct < 2:
        found = f"only the value {values[0]!r}" if len(values) else "no value at all"
        remarks.append(f"{place}: {found}, so there is nothing to learn; take it out")
        return {"kind": "regression" if values.dtype.is_float() else "multiclass"}
    if distinct == 2 and not values.dtype.is_float():
        found = values.unique().sort().to_list()
        if found in ([0, 1], [False, True]):
            return {"kind": "binary"}
        positive, reason = min(found, key=lambda value: int((values == value).sum())), "the rarer"
        if [str(value).strip() for value in found] == ["0", "1"]:
            positive, reason = found[1], repr(found[1])
        remarks.append(f"{place}: values {found[0]!r} and {found[1]!r}; {reason} is taken as positive")
        return {"kind": "binary", "positive": positive}
    if distinct <= MOST_CLASSES and not values.dtype.is_float():
        remarks.append(f"{place}: {distinct} values, taken as classes; kind: regression if they are amounts")
        return {"kind": "multiclass"}
    if values.dtype.is_numeric():
        remarks.append(f"{place}: numbers with {distinct} values, taken as a regression")
        return {"kind": "regression"}
    remarks.append(f"{place}: {distinct} classes, which are many; check that this is a label")
    return {"kind": "multiclass"}


def _word_for_nothing(series: pl.Series) -> str | None:
    """A text among others that usually means that there is no value, such as NA."""
    if series.dtype != pl.String:
        return None
    found = [value for value in series.drop_nulls().unique().sort() if value.strip().lower() in _NO_VALUE]
    return found[0] if len(found) == 1 else None


def _named(sample: pl.DataFrame) -> tuple[list[str], str]:
    found = [
        column
        for column in sample.columns
        if column.strip().lower() in LABEL_NAMES or column.strip().lower().startswith(_LABEL_PREFIXES)
    ]
    return found, f"taken by their names: {', '.join(found)}; add the others, take out what is no label"


def _beside_an_input(sample: pl.DataFrame) -> tuple[list[str], str]:
    """With a text, an image or a molecule to predict from, other columns are mostly what is to be predicted."""
    kinds = {column: feature_kind(sample[column]) for column in sample.columns}
    inputs = [column for column, kind in kinds.items() if is_input(kind)]
    if not inputs:
        return [], ""
    alone = any(encodes_alone(kinds[column]) for column in inputs)
    found = [
        column
        for column, kind in kinds.items()
        if column not in inputs
        and kind != "drop"
        and (has_few_values(sample[column]) or (alone and sample[column].dtype.is_float()))
    ]
    return found, f"what stands beside {inputs[0]!r}: {_some(found)}; take out what is no label"


def _numbered(sample: pl.DataFrame) -> tuple[list[str], str]:
    """Y1, Y2, ... at the end."""
    stem = re.fullmatch(r"(.*?)\d+", sample.columns[-1])
    if stem is None:
        return [], ""
    found: list[str] = []
    for column in reversed(sample.columns):
        if not re.fullmatch(re.escape(stem[1]) + r"\d+", column):
            break
        found.insert(0, column)
    if not 1 < len(found) <= len(sample.columns) // 2:
        return [], ""
    return found, f"no column has a usual name; {_some(found)} are the last columns; check them"


def _last(sample: pl.DataFrame) -> tuple[list[str], str]:
    column = sample.columns[-1]
    if len(sample.columns) < 2:
        return [], ""
    if has_few_values(sample[column]) and not all(has_few_values(sample[other]) for other in sample.columns):
        return [column], f"no column has a usual name; {column!r} is the last column and has few values; check it"
    if sample[column].dtype.is_float():
        return [column], f"no column has a usual name; {column!r} is the last column and a number; check it"
    return [], ""


def _some(names: list[str], most: int = 6) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
