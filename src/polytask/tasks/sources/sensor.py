"""`sensor:` the pictures of `multidigits` as other cameras would take them: of another size, in colours, or as edges.

Sensors of one seed draw a split's digits from the same handwritten ones, so no test digit was seen through another.
"""

from collections.abc import Mapping

import numpy as np
import polars as pl

from polytask.core.noise import Noise
from polytask.tasks.data_spec import SensorSpec
from polytask.tasks.sources.multidigits import CANVAS, DEFAULT_ROWS, interpolation, multidigits


def sensor(spec: SensorSpec, rows: Mapping[str, int], seed: int) -> pl.DataFrame:
    """Columns image ([H, W] or [H, W, 3] uint8), left, right, sum, split."""
    frame = multidigits(DEFAULT_ROWS | dict(rows), seed, spec.pairs)
    down, across = (interpolation(CANVAS, side) for side in spec.size)
    seen = []
    for (split,), part in frame.group_by("split", maintain_order=True):
        ink = down @ (part["image"].to_numpy() / 255) @ across.T
        seen.append(_seen(spec.style, ink, Noise(seed, "sensor", str(split), spec.pairs)))
    return frame.with_columns(pl.Series("image", np.rint(255 * np.concatenate(seen)).astype(np.uint8)))


def _seen(style: str, ink: np.ndarray, noise: Noise) -> np.ndarray:
    """[N, H, W], or [N, H, W, 3], in [0, 1], of ink [N, H, W]."""
    if style == "inverted":
        return 1 - ink
    if style == "edges":  # what grows downwards and to the right, and how fast in all
        down, across = np.gradient(ink, axis=(1, 2))
        return np.stack([0.5 + down, 0.5 + across, np.hypot(down, across)], axis=-1).clip(0, 1)
    if style == "colours":  # of ink and of paper, other ones for each picture
        draws = noise.uniform(len(ink) * 6).reshape(-1, 2, 1, 1, 3)
        paper, colour = 0.4 * draws[:, 0], 0.6 + 0.4 * draws[:, 1]
        return paper + ink[..., None] * (colour - paper)
    return ink
