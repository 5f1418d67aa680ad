"""Which columns are features, and of which kind: what the recipe says, else a guess from the column's type."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from polytask.core.errors import DataError, MissingInput
from polytask.tasks.features.feature import Feature
from polytask.tasks.features.kinds import FEATURES
from polytask.tasks.features.options import (
    ArrayOptions,
    CategoricalOptions,
    ImageOptions,
    MultiHotOptions,
    NumericOptions,
    Options,
    PiecewiseLinearOptions,
    TextOptions,
    VectorOptions,
)

# Text with more distinct values than both bounds is no category but free text, a molecule or an identifier.
DISTINCT_VALUES, DISTINCT_SHARE = 50, 0.5
_IMAGE_CHANNELS = (1, 3)


def choose_features(
    sample: pl.DataFrame,
    said: Mapping[str, Options],
    *,
    where: str,
    numeric: NumericOptions | PiecewiseLinearOptions | None = None,
    tokenizer: str | None = None,
    root: Path | None = None,
) -> list[Feature]:
    """One unfitted feature a column of the sample, in the order of its columns.

    Args:
        sample: training rows (some suffice), without the columns that are no features.
        said: column -> options, from the recipe.
        where: the source, for messages.
        numeric: options of the number columns that `said` leaves out.
        tokenizer: directory or hub id; given when the encoder reads text, and then free text is a text feature.
        root: folder of the images that paths name.

    Raises: DataError for a column whose kind cannot be guessed, or that is a feature and read by another one too.
    """
    beside = {column: owner for owner, options in said.items() for column in options.beside}
    for column, owner in beside.items():
        if column in said:
            raise DataError(f"{where}: features.{column}: it is part of the feature {owner!r}, and none of its own")
    features: list[Feature] = []
    for column in sample.columns:
        if column in beside:
            continue
        options: Any = said.get(column) or guess(sample[column], where, has_tokenizer=tokenizer is not None)
        if column not in said and numeric is not None and isinstance(options, NumericOptions):
            options = numeric
        if isinstance(options, TextOptions):
            if tokenizer is None:
                raise MissingInput(
                    f"{where}: column {column!r} is text, which needs a tokenizer (encoder: {{kind: transformer}})"
                )
            features.append(FEATURES["text"].with_tokenizer(column, options, tokenizer))
        elif isinstance(options, ImageOptions):
            features.append(FEATURES["image"](column, options, root))
        else:
            features.append(FEATURES[options.kind](column, options))
    return features


def guess(series: pl.Series, where: str, *, has_tokenizer: bool = False) -> Any:
    """Options of the kind that a column of this type usually has."""
    dtype = series.dtype
    if dtype == pl.Boolean:
        return CategoricalOptions()
    if dtype.is_numeric() or dtype.is_temporal() or dtype == pl.Null:
        return NumericOptions()
    if dtype == pl.Binary:
        return ImageOptions()
    if dtype in (pl.Categorical, pl.Enum):
        return CategoricalOptions()
    if dtype == pl.String:
        if not is_free_text(series):
            return CategoricalOptions()
        if has_tokenizer:
            return TextOptions()
        raise DataError(
            f"{where}: column {series.name!r} has {series.n_unique()} distinct values in {len(series)} training rows, "
            f"so it is no plain category; leave it out with drop: [{series.name}], or say what it is with "
            f"features: {{{series.name}: categorical | morgan | molecule | text | image}}"
        )
    if isinstance(dtype, pl.List):
        return VectorOptions() if dtype.inner.is_float() else MultiHotOptions()
    if isinstance(dtype, pl.Array):
        return _guess_array(dtype)
    raise DataError(
        f"{where}: column {series.name!r} has type {dtype}, which is no feature; leave it out: drop: [{series.name}]"
    )


def is_free_text(series: pl.Series) -> bool:
    distinct, known = series.n_unique(), len(series) - series.null_count()
    return distinct > DISTINCT_VALUES and distinct > DISTINCT_SHARE * known


def _guess_array(dtype: pl.Array) -> Any:
    shape, inner = dtype.shape, dtype
    while isinstance(inner, pl.Array):
        inner = inner.inner
    if len(shape) == 1:
        return VectorOptions()
    has_channels = len(shape) == 3 and (shape[0] in _IMAGE_CHANNELS or shape[2] in _IMAGE_CHANNELS)
    if inner.is_integer() and (len(shape) == 2 or has_channels):
        return ImageOptions()
    return ImageOptions() if has_channels and shape[0] in _IMAGE_CHANNELS else ArrayOptions()
