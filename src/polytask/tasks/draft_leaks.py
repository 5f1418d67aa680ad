"""Guesses for `polytask init`: features that give a label away."""

from collections.abc import Sequence
from typing import Any

import polars as pl

from polytask.tasks.draft_labels import has_few_values

_FEWEST_ROWS = 10  # of a class, for a pattern to mean something
_ELSEWHERE = 0.05  # share of the other rows that may have the same value


def leaks(sample: pl.DataFrame, labels: Sequence[str], features: Sequence[str]) -> list[str]:
    """A remark a feature that has one value (or none) wherever a label has one, and hardly anywhere else.

    So it is with an amount that exists only after a click: it is empty, or 0, exactly where nobody clicked.
    """
    remarks = []
    for column in features:
        if sample[column].dtype.is_nested():
            continue
        for label in labels:
            if has_few_values(sample[label]) and (found := _pattern(sample, label, column)) is not None:
                value, given = found
                shown = "empty" if value is None else f"{value!r}"
                remarks.append(
                    f"data.features: {column!r} is {shown} wherever {label} is {given!r}, and hardly elsewhere, so it "
                    f"gives {label} away; make it a task (where: {label}) or drop it"
                )
                break
    return remarks


def _pattern(sample: pl.DataFrame, label: str, column: str) -> tuple[Any, Any] | None:
    """(the feature's value, the label's value)."""
    pairs = pl.DataFrame({"label": sample[label], "value": sample[column]}).filter(pl.col("label").is_not_null())
    classes = pairs.group_by("label").agg(pl.len(), pl.col("value").n_unique().alias("distinct")).sort("label")
    for given, rows, distinct in classes.iter_rows():
        if distinct != 1 or rows < _FEWEST_ROWS or rows == len(pairs):
            continue
        inside = pairs["label"] == given
        value = pairs.filter(inside)["value"][0]
        others = pairs.filter(~inside)["value"]
        same = others.is_null() if value is None else (others == value).fill_null(False)
        if float(same.to_numpy().mean()) <= _ELSEWHERE:
            return value, given
    return None
