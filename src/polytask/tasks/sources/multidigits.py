"""`builtin: multidigits`: two real handwritten digits overlapped on one 28 x 28 canvas.

Source: the construction of MultiMNIST (Sabour et al. 2017, arXiv:1710.09829; as a two-task problem in Sener and Koltun
2018, arXiv:1810.04650) on scikit-learn's bundled digits (Alpaydin and Kaynak 1998, 1,797 images of 8 x 8 pixels). Each
digit is enlarged to 20 x 20; one stands at the top left, the other at the bottom right, and the brighter pixel wins.
"""

import random
from collections.abc import Mapping

import numpy as np
import polars as pl

from polytask.core.noise import Noise

SPLITS = ("train", "valid", "test")
DEFAULT_ROWS = {"train": 4000, "valid": 1000, "test": 2000}
SHARES = (0.6, 0.8)  # of the source images: up to 0.6 train, up to 0.8 valid, the rest test
DIGIT, CANVAS = 20, 28


def source(rows: Mapping[str, int], seed: int) -> pl.DataFrame:
    """What `builtin: multidigits` gives; see `polytask.tasks.names`."""
    return multidigits(DEFAULT_ROWS | dict(rows), seed)


def multidigits(rows: dict[str, int] | None = None, seed: int = 0, pairs: int = 0) -> pl.DataFrame:
    """Columns image ([28, 28] uint8), left, right (the digits), sum, split; no source image serves two splits.

    Args: rows: images a split; seed: decides which source images each split gets and how they are paired; pairs:
        another number pairs the same ones otherwise.
    """
    rows = rows or DEFAULT_ROWS
    digits, values = _enlarged_digits()
    noise = Noise(seed, "multidigits")
    order = noise.child("sources").permutation(len(digits))
    bounds = [round(share * len(digits)) for share in SHARES]
    frames = []
    for split, sources in zip(SPLITS, np.split(order, bounds), strict=True):
        n = rows.get(split, 0)
        draw = noise.child(split, *([pairs] if pairs else []))
        left = sources[draw.child("left").integers(n, len(sources))]
        right = sources[draw.child("right").integers(n, len(sources))]
        canvas = np.zeros((n, CANVAS, CANVAS), dtype=np.uint8)
        canvas[:, :DIGIT, :DIGIT] = digits[left]
        corner = canvas[:, CANVAS - DIGIT :, CANVAS - DIGIT :]
        np.maximum(corner, digits[right], out=corner)
        labels = {"left": values[left], "right": values[right], "sum": values[left] + values[right]}
        image = pl.Series(canvas, dtype=pl.Array(pl.UInt8, (CANVAS, CANVAS)))
        frames.append(
            pl.DataFrame({"image": image, **labels, "split": [split] * n}, schema_overrides={"split": pl.String})
        )
    return pl.concat(frames)


def _enlarged_digits() -> tuple[np.ndarray, np.ndarray]:
    """uint8 [1797, 20, 20] and the digits int64 [1797]."""
    state = random.getstate()
    from sklearn.datasets import load_digits  # importing it draws from Python's global generator

    random.setstate(state)
    bundled = load_digits()
    grow = interpolation(bundled.images.shape[1], DIGIT)
    enlarged = grow @ bundled.images @ grow.T  # linear along both axes
    return np.rint(enlarged * (255 / 16)).astype(np.uint8), bundled.target.astype(np.int64)


def interpolation(old: int, new: int) -> np.ndarray:
    """[new, old]: linear interpolation between pixel centres, the border repeated."""
    position = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
    low = np.minimum(position.astype(int), old - 2)
    weights = np.zeros((new, old))
    weights[np.arange(new), low] = 1 - (position - low)
    weights[np.arange(new), low + 1] = position - low
    return weights
