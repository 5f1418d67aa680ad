"""Piecewise-linear codes of numbers."""

import numpy as np
import polars as pl
import pytest

from polytask.core.errors import DataError
from polytask.tasks.features.feature import Place
from polytask.tasks.features.options import PiecewiseLinearOptions
from polytask.tasks.features.piecewise_linear import PiecewiseLinear

PLACE = Place("here")


def fitted(values: list[float | None], bins: int) -> PiecewiseLinear:
    feature = PiecewiseLinear("x", PiecewiseLinearOptions(bins=bins))
    feature.observe(pl.DataFrame({"x": values}, schema={"x": pl.Float64}), PLACE)
    feature.finish(PLACE)
    return feature


def written(feature: PiecewiseLinear, values: list[float | None]) -> np.ndarray:
    into = np.full((len(values), feature.width), np.nan)
    feature.write(pl.DataFrame({"x": values}, schema={"x": pl.Float64}), PLACE, into)
    return into


def test_codes_by_hand() -> None:
    # Edges of [0, 4] in two bins are 0, 2, 4: a value fills the intervals below it and a part of its own.
    feature = fitted([0.5, 0.0, 1.0, 2.0, 3.0, 3.5, 4.0], bins=2)
    np.testing.assert_array_equal(feature.edges, [0, 2, 4])
    np.testing.assert_array_equal(written(feature, [1, 2, 3, -5, 9]), [[0.5, 0], [1, 0], [1, 0.5], [0, 0], [1, 1]])


def test_mostly_zero_keeps_zero_as_an_edge() -> None:
    feature = fitted([0.0] * 90 + [10.0, 20.0, 30.0], bins=3)
    np.testing.assert_array_equal(feature.edges, [0, 10, 20, 30])


def test_missing_values_are_zeros_and_marked() -> None:
    feature = fitted([1.0, None, 3.0], bins=1)
    np.testing.assert_array_equal(written(feature, [None, 2.0]), [[0, 1], [0.5, 0]])


def test_constant_column_stays_finite() -> None:
    assert np.isfinite(written(fitted([7.0, 7.0], bins=4), [7.0, 8.0, -1e300])).all()


def test_chunks_do_not_matter_and_json_is_exact() -> None:
    values = np.random.default_rng(0).normal(size=1000).tolist()
    whole, parts = fitted(values, 16), PiecewiseLinear("x", PiecewiseLinearOptions(bins=16))
    for start in range(0, 1000, 300):
        parts.observe(pl.DataFrame({"x": values[start : start + 300]}), PLACE)
    parts.finish(PLACE)
    read = PiecewiseLinear.from_json(parts.to_json())
    np.testing.assert_array_equal(written(read, values), written(whole, values))


def test_many_values_are_thinned_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("polytask.tasks.features.piecewise_linear._KEPT", 100)
    feature = PiecewiseLinear("x", PiecewiseLinearOptions(bins=4))
    for start in range(0, 1000, 70):
        feature.observe(pl.DataFrame({"x": np.arange(start, min(start + 70, 1000), dtype=np.float64)}), PLACE)
    feature.finish(PLACE)
    np.testing.assert_allclose(feature.edges, [0, 250, 500, 750, 1000], atol=20)


def test_no_value_in_training() -> None:
    with pytest.raises(DataError, match="column 'x' has no value in training"):
        fitted([None, None], bins=4)
