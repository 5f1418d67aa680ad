"""MagPrune: drop at random and rescale, the larger elements of a row less often than the smaller ones.

Source      Deep et al. 2024, arXiv:2406.11617, "DELLA": in each row of n elements the one of magnitude rank r (0 the
            largest) is dropped with probability p - epsilon / 2 + epsilon r / n and divided by its probability of
            being kept; p is 1 - density.
Departures  of equal magnitudes the lower index has the lower rank. `span` = "ends" reaches both ends of the range
            exactly, epsilon r / (n - 1), as mergekit documents it (whose epsilon is half of this one). A tensor with
            one axis is one row. Probabilities are multiples of 2^-32.
Cost        a sort of each row and a draw of 32 bits an element.
"""

import sys
from typing import Annotated

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from polytask.core.constraints import Choice, Interval, PerTask
from polytask.core.errors import BadValue
from polytask.core.noise import Noise
from polytask.merging.contract import transform


@transform("magprune", source="arXiv:2406.11617", granularity="row")
def magprune(
    stack: Float[Tensor, "T rows row"],
    *,
    noise: tuple[Noise, ...],
    density: Annotated[Float[Tensor, "T"] | float, PerTask(Interval(0, 1, open="left"))] = 0.5,
    epsilon: Annotated[Float[Tensor, "T"] | float, PerTask(Interval(0, 1))] = 0.2,
    span: Annotated[str, Choice("steps", "ends")] = "steps",
    rescale: Annotated[str, Choice("density", "none")] = "density",
) -> Float[Tensor, "T rows row"]:
    """The kept elements.

    Args:    stack: whole rows of the task vectors; overwritten.
             noise: of each task.
             density: by task, the mean probability of being kept.
             epsilon: by task, the range of the probabilities; density - epsilon / 2 must be above 0, and
                 density + epsilon / 2 at most 1.
             span: whether the probabilities take n equal steps down from the upper end, or reach both ends.
             rescale: divide what is kept by its probability, or leave it.
    Returns: the same rows.
    """
    ones = torch.ones(len(stack), dtype=torch.float64)
    means, widths = (ones * density).tolist(), (ones * epsilon).tolist()
    for rows, source, mean, width in zip(stack, noise, means, widths, strict=True):
        if mean - width / 2 <= 0 or mean + width / 2 > 1 + 1e-12:
            allowed = f"at most {2 * min(mean, 1 - mean):g} with density {mean:g}, and less than {2 * mean:g}"
            raise BadValue("epsilon", width, allowed, "transform 'magprune'")
        if rows.numel():
            share = _probabilities(rows.shape[1], mean, width, span)
            step = max(1, _AT_ONCE // rows.shape[1])
            for start in range(0, len(rows), step):
                part = rows[start : start + step]
                shifted = source.shifted(start * rows.shape[1])
                part.mul_(torch.from_numpy(_factors(part.float().numpy(), shifted, share, rescale)))
    return stack


_AT_ONCE = 1 << 15  # elements that are sorted at a time, so that the keys stay in a core's cache


def _probabilities(length: int, mean: float, width: float, span: str) -> Float[np.ndarray, "row"]:
    """Of being kept, by magnitude rank."""
    if span == "ends" and length == 1:
        return np.array([mean])
    return np.minimum(mean + width / 2 - width / (length - (span == "ends")) * np.arange(length), 1.0)


def _factors(
    rows: Float[np.ndarray, "rows row"], source: Noise, share: Float[np.ndarray, "row"], rescale: str
) -> Float[np.ndarray, "rows row"]:
    """What each element is multiplied by: 0 where it is dropped."""
    order = by_magnitude(rows)
    drawn = source.bits(rows.size)[order]
    kept = drawn <= np.maximum(np.ceil(share * 2.0**32) - 1, 0).astype(np.uint32)
    factors = np.empty(rows.size, dtype=np.float32)
    factors[order] = np.multiply(kept, (1 / share if rescale == "density" else np.ones_like(share)).astype(np.float32))
    return factors.reshape(rows.shape)


def by_magnitude(rows: Float[np.ndarray, "rows row"]) -> Int[np.ndarray, "rows row"]:
    """In each row the places of its elements in the whole, the largest magnitude first, equal ones by index.

    A sort of (magnitude, place) as one 64-bit integer, which NumPy does several times as fast as an argsort.
    """
    keys = np.empty(rows.shape, dtype=np.uint64)
    halves = keys.view(np.uint32).reshape(*rows.shape, 2)
    np.invert(rows.view(np.uint32), out=halves[..., _HIGH])
    halves[..., _HIGH] &= np.uint32(0x7FFFFFFF)
    halves[..., _LOW] = np.arange(rows.size, dtype=np.uint32).reshape(rows.shape)
    keys.sort(axis=1)
    return halves[..., _LOW].astype(np.int64)


_LOW, _HIGH = (0, 1) if sys.byteorder == "little" else (1, 0)  # halves of a 64-bit integer
