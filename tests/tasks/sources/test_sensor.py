"""Pictures of digits as several sensors see them."""

import re
from typing import Any

import numpy as np
import pytest

from polytask.core.errors import PolytaskError
from polytask.core.validation import validated
from polytask.tasks.data_spec import DataSpec, SensorSpec
from polytask.tasks.sources.multidigits import multidigits
from polytask.tasks.sources.opening import open_rows
from polytask.tasks.sources.sensor import sensor

FEW = {"train": 30, "valid": 10, "test": 10}


def images(rows: dict[str, int] = FEW, seed: int = 0, **spec: Any) -> np.ndarray:
    return sensor(SensorSpec(**spec), rows, seed)["image"].to_numpy()


def test_the_plain_sensor_of_full_size_sees_the_pictures_themselves() -> None:
    bundled = multidigits(FEW, seed=3)
    seen = sensor(SensorSpec(), FEW, 3)
    assert seen.equals(bundled)
    assert np.array_equal(images(style="inverted", seed=3), 255 - bundled["image"].to_numpy())


@pytest.mark.parametrize("style, channels", [("plain", []), ("inverted", []), ("colours", [3]), ("edges", [3])])
def test_sizes_and_channels(style: str, channels: list[int]) -> None:
    found = images(size=[14, 20], style=style)
    assert found.shape == (50, 14, 20, *channels)
    assert found.dtype == np.uint8
    assert np.array_equal(found, images(size=[14, 20], style=style))


def test_a_smaller_picture_is_the_larger_one_between_its_pixels() -> None:
    large, small = images().astype(float), images(size=[14, 14]).astype(float)
    means = large.reshape(50, 14, 2, 14, 2).mean((2, 4))  # the centre of a small pixel lies between four
    assert np.abs(small - means).max() <= 0.5


def test_edges_are_differences_down_and_across() -> None:
    ink = images().astype(float) / 255
    down, across, length = np.moveaxis(images(style="edges").astype(float) / 255, -1, 0)
    expected = (ink[:, 2:, 1:-1] - ink[:, :-2, 1:-1]) / 2, (ink[:, 1:-1, 2:] - ink[:, 1:-1, :-2]) / 2
    assert np.abs(down[:, 1:-1, 1:-1] - 0.5 - expected[0]).max() < 0.003
    assert np.abs(across[:, 1:-1, 1:-1] - 0.5 - expected[1]).max() < 0.003
    assert np.abs(length[:, 1:-1, 1:-1] - np.hypot(*expected)).max() < 0.003


def test_colours_differ_from_picture_to_picture_and_more_pictures_change_none() -> None:
    found = images(style="colours")
    paper = found[:, 0, 20]  # a corner without ink
    assert len({tuple(colour) for colour in paper.tolist()}) == 50
    assert paper.max() <= 0.4 * 255
    more = sensor(SensorSpec(style="colours"), {**FEW, "train": 40}, 0)
    assert np.array_equal(more["image"].to_numpy()[40:], found[30:])


def test_other_pairs_of_the_same_handwritten_digits() -> None:
    """No digit of one sensor's test split was among another's training digits."""
    many = {"train": 1500, "valid": 10, "test": 1500}
    one, other = (sensor(SensorSpec(pairs=pairs), many, 0) for pairs in (0, 1))
    assert not one.equals(other)
    tops = [frame["image"].to_numpy()[:, :8, :20].reshape(len(frame), -1) for frame in (one, other)]  # the left one's
    seen = [
        {split: {row.tobytes() for row in rows[(frame["split"] == split).to_numpy()]} for split in ("train", "test")}
        for rows, frame in zip(tops, (one, other), strict=True)
    ]
    assert not seen[0]["train"] & seen[1]["test"]
    assert len(seen[0]["test"] & seen[1]["test"]) > 100


def test_a_recipe_names_it() -> None:
    spec = validated(DataSpec, {"sensor": {"size": [8, 8]}, "rows": FEW}, "recipe.data")
    rows = open_rows("data", spec.named_sources()["data"], [], data_dir=None, beside=None)
    assert len(rows) == 50


@pytest.mark.parametrize(
    "bad, message",
    [
        ({"sensor": {"size": [3, 16]}}, "recipe.data.sensor.size.0 is 3; allowed: greater than or equal to 4"),
        ({"sensor": {"style": "edge"}}, "recipe.data.sensor.style"),
        ({"sensor": {"pairs": -1}}, "recipe.data.sensor.pairs is -1; allowed"),
        ({"sensor": {}, "builtin": "multidigits"}, "found builtin and sensor"),
        ({"sensor": {}, "rows": 5}, "sensor data has its own split, and takes rows as"),
    ],
)
def test_mistakes(bad: dict[str, Any], message: str) -> None:
    with pytest.raises(PolytaskError, match=re.escape(message)):
        validated(DataSpec, bad, "recipe.data")
