"""MagPrune: drop at random and rescale, the larger elements of a row less often than the smaller ones.

Source      Deep et al. 2024, arXiv:2406.11617, "DELLA": in each row of n elements the one of magnitude rank r (0 the
            largest) is dropped with probability p - epsilon / 2 + epsilon r / n and divided by its probability of
            being kept; p is 1 - density.
Departures  of equal magnitudes the lower index has the lower rank. `span` = "ends" reaches both ends of the range
            exactly, epsilon r / (n - 1), as mergekit documents it (whose epsilon is half of this one). A tensor with
            one axis is one row. Probabilities are multiples of 2^-32.
Cost        a sort of each row, and a draw of 16 bits an element and of 16 more for one in 65,536.
"""

from functools import lru_cache
from typing import Annotated

import numpy as np
import torch
from jaxtyping import Float, Int, UInt64
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
            _drop(rows, source, share, rescale)
    return stack


_AT_ONCE = 1 << 15  # elements that are sorted at a time, so that the keys stay in a core's cache


def _probabilities(length: int, mean: float, width: float, span: str) -> Float[np.ndarray, "row"]:
    """Of being kept, by magnitude rank."""
    if span == "ends" and length == 1:
        return np.array([mean])
    return np.minimum(mean + width / 2 - width / (length - (span == "ends")) * np.arange(length), 1.0)


def _drop(rows: Float[Tensor, "rows row"], source: Noise, share: Float[np.ndarray, "row"], rescale: str) -> None:
    """Multiplies each element by 0 or by what keeps its expectation; `share` is by magnitude rank."""
    length, last = rows.shape[1], np.maximum(np.ceil(share * 2.0**32), 1).astype(np.int64)[::-1] - 1
    high, low = (last >> 16).astype(np.uint16), last & 0xFFFF
    scales = (1 / share if rescale == "density" else np.ones_like(share)).astype(np.float32)[::-1].copy()
    upper = source.upper(rows.numel())
    step = max(1, _AT_ONCE // length) * length
    for part, start in zip(rows.view(-1).split(step), range(0, rows.numel(), step), strict=True):
        order = ascending(part.float().numpy().reshape(-1, length))
        drawn = upper[start : start + part.numel()][::-1].take(order)
        kept = drawn <= high
        for at in np.flatnonzero(drawn == high).tolist():  # one in 65,536
            index = start + part.numel() - 1 - int(order.flat[at])
            kept.flat[at] = source.lower(index) <= low[at % length]
        factors = np.empty(part.numel(), dtype=np.float32)
        factors[::-1][order] = np.multiply(kept, scales)
        part.mul_(torch.from_numpy(factors))


def ascending(rows: Float[np.ndarray, "rows row"]) -> Int[np.ndarray, "rows row"]:
    """In each row the places of its elements, the smallest magnitude first, of equal ones the last.

    Places are counted from the end of all rows. What is sorted is (magnitude, place) as one 64-bit integer, which NumPy
    does several times as fast as an argsort.
    """
    keys = rows.view(np.uint32).astype(np.uint64)
    keys <<= np.uint64(_PLACE)  # which shifts the sign out
    keys |= _places(rows.size).reshape(rows.shape)
    keys.sort(axis=1)
    keys &= np.uint64((1 << _PLACE) - 1)
    return keys.view(np.int64)


@lru_cache(maxsize=2)  # the parts of a matrix, and the last of them
def _places(size: int) -> UInt64[np.ndarray, "n"]:
    return np.arange(size - 1, -1, -1, dtype=np.int64).view(np.uint64)


_PLACE = 33  # bits of a key, of 64, that a place may take
