"""Guesses for `polytask init`: what the columns are that are no labels."""

from dataclasses import dataclass, field
from typing import Any

import polars as pl

from polytask.tasks.features.choose import is_free_text

_SMILES = r"^[A-Za-z0-9@+\-\[\]\(\)=#$:/\\.%*]+$"
_SMILES_SIGNS = r"[=#\[\(]|[CcNnOo]1"
_IMAGE_FILE = r"(?i)\.(png|jpe?g|bmp|gif|webp|tiff?)$"
_DECIMAL_COMMA = r"^-?\d+,\d+$"
_WORDS = 3  # a text has at least so many words on average
_LOOKS = {
    "text": "text",
    "morgan": "molecules in SMILES notation",
    "image": "encoded images",
    "path": "files of images; data.root names the folder where the paths start, if not the table's",
}


@dataclass
class Features:
    """Attributes: drop: columns; declared: what the recipe says about columns; kinds: of the columns that are kept, as
    `feature_kind` has them; identifiers: columns of numbers that name something (a user)."""

    drop: list[str] = field(default_factory=list)
    declared: dict[str, Any] = field(default_factory=dict)
    kinds: dict[str, str] = field(default_factory=dict)
    identifiers: list[str] = field(default_factory=list)


def draft_features(sample: pl.DataFrame, remarks: list[str]) -> Features:
    """Decides about every column."""
    features = Features()
    kinds = {column: feature_kind(sample[column]) for column in sample.columns}
    alone = next((column for column, kind in kinds.items() if encodes_alone(kind)), None)
    for column, kind in kinds.items():
        if kind == "drop" or (alone is not None and column != alone):
            features.drop.append(column)
            remarks.append(f"data.drop: {column!r} {_why_dropped(sample[column], kind, alone)}")
            continue
        features.kinds[column] = kind
        if is_input(kind):
            features.declared[column] = _declared(sample[column], kind)
            remarks.append(f"data.features: {column!r} looks like {_LOOKS[kind]}")
            if features.declared[column].get("invalid") == "drop":
                remarks.append(f"data.features: rows whose {column!r} is no molecule are left out (invalid: drop)")
        elif kind == "categorical" and sample[column].dtype.is_integer():
            features.identifiers.append(column)
            features.declared[column] = {"kind": "categorical"}
            remarks.append(f"data.features: {column!r} is a number that names something, so a category and no amount")
        elif kind == "categorical" and (reason := _why_text(sample[column])):
            remarks.append(f"data.features: {column!r} is text {reason}")
    return features


def feature_kind(series: pl.Series) -> str:
    """text, image, path (of an image), morgan, list, categorical, numeric, or drop."""
    known = series.drop_nulls()
    if not len(known):
        return "drop"
    if series.dtype == pl.Binary or (isinstance(series.dtype, pl.Array) and len(series.dtype.shape) > 1):
        return "image"
    if series.dtype == pl.String:
        return _text_kind(series, known)
    if series.dtype.is_integer() and _names_something(series.name):
        return "drop" if series.n_unique() > 0.9 * len(series) else "categorical"
    if series.dtype.is_integer() and _counts_rows(series):
        return "drop"
    if isinstance(series.dtype, pl.List | pl.Array):
        return "list"
    return "categorical" if series.dtype in (pl.Boolean, pl.Categorical, pl.Enum) else "numeric"


def is_input(kind: str) -> bool:
    """Whether a column of this kind is what a table is about: a text, an image, a molecule."""
    return kind in _LOOKS


def encodes_alone(kind: str) -> bool:
    """Whether its encoder reads no other column."""
    return kind in ("text", "image", "path")


def _text_kind(series: pl.Series, known: pl.Series) -> str:
    if _share(known, _IMAGE_FILE) > 0.95:
        return "path"
    if "smiles" in series.name.lower() or _looks_like_smiles(known):
        return "morgan"
    if not is_free_text(series):
        return "categorical"
    return "text" if known.str.count_matches(r"\S+").to_numpy().mean() >= _WORDS else "drop"


def _declared(series: pl.Series, kind: str) -> dict[str, Any]:
    if kind != "morgan":
        return {"kind": "image" if kind == "path" else kind}
    unreadable = series.null_count() > 0 or _has_unreadable_molecules(series)
    return {"kind": "morgan", "radius": 2, "bits": 2048, **({"invalid": "drop"} if unreadable else {})}


def _has_unreadable_molecules(series: pl.Series) -> bool:
    from polytask.core.errors import MissingExtra
    from polytask.tasks.features.molecules import parse, rdkit

    try:
        with rdkit("a look at the molecules") as chem:
            return any(parse(chem, text) is None for text in series)
    except MissingExtra:  # training will ask for it
        return False


def _why_dropped(series: pl.Series, kind: str, alone: str | None) -> str:
    if not series.null_count() < len(series):
        return "is empty in every row"
    if series.dtype.is_integer() and _counts_rows(series):
        return "counts the rows"
    if kind == "drop":
        return "has another value in nearly every row: taken as an identifier"
    return f"is not read beside {alone!r}"


def _looks_like_smiles(texts: pl.Series) -> bool:
    return is_free_text(texts) and _share(texts, _SMILES) > 0.95 and _share(texts, _SMILES_SIGNS) > 0.5


def _share(texts: pl.Series, pattern: str) -> float:
    return float(texts.str.contains(pattern).to_numpy().mean())


def _names_something(name: str) -> bool:
    name = name.lower()
    return name in ("", "id", "index", "row", "key", "uuid") or name.endswith(("_id", "id_"))


def _counts_rows(series: pl.Series) -> bool:
    return len(series) > 2 and not series.null_count() and bool((series.diff().drop_nulls() == 1).all())


def _why_text(series: pl.Series) -> str:
    """Why a column of text looks as if it were meant to be numbers; empty if it does not."""
    if series.dtype != pl.String:
        return ""
    known = series.drop_nulls()
    words = known.filter(known.cast(pl.Float64, strict=False).is_null())
    if _share(known, _DECIMAL_COMMA) > 0.5:
        return "because of decimal commas; with points it is a number"
    if 0 < len(words) < len(known) / 2:
        return f"because of values such as {words[0]!r}; with those empty it is a number"
    return ""
