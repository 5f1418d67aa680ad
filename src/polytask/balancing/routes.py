"""Which layers are worth inner products, as far as shapes tell: the criteria of the engines that ask."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from polytask.balancing.layers import Layer

MOVED = 36  # multiplications in whose time one number is read or written
FIXED = 40_000_000  # multiplications in whose time a layer is found and its calls are made: below, exact is as fast


@dataclass(frozen=True)
class Criterion:
    """When a layer is taken by inner products.

    Attributes:
        pays: (layer, number of tasks) -> whether it is.
        may_pay: (shape of a parameter, number of tasks) -> whether it may be, whatever the batch; where it is so of
            none, layers need not be looked for.
    """

    pays: Callable[[Layer, int], bool]
    may_pay: Callable[[Sequence[int], int], bool]


def _fewer_rows(layer: Layer, tasks: int) -> bool:
    return layer.rows < layer.fan_in


def _less_work(layer: Layer, tasks: int) -> bool:
    """Compares multiplications and numbers moved.

    Exact: each task's gradient, the Gram matrix of these; a gradient is written, copied and read twice. By layer: half
    of X X^T and of its product with each task's D, the Gram matrix of these, one weight gradient; D is copied and read
    four times. Not more rows than fan-in, so that it takes no more memory either.
    """
    rows, fan_in, outputs = layer.rows, layer.fan_in, layer.outputs
    if rows > fan_in:
        return False
    if layer.kind == "embedding":
        return tasks * (fan_in - rows) * outputs * 5 * MOVED > FIXED
    exact = tasks * fan_in * outputs * (rows + tasks + 5 * MOVED)
    triangle = rows * (rows + 64) // 2
    products = triangle * (fan_in + tasks * outputs) + tasks * rows * outputs * (tasks + 7 * MOVED)
    patches = 4 * MOVED * rows * fan_in if layer.kind == "convolution" else 0
    return products + rows * fan_in * outputs + patches + FIXED < exact


def _large_enough(shape: Sequence[int], tasks: int) -> bool:
    """All that `_less_work` could spare of a parameter is more than `FIXED`."""
    if len(shape) < 2:
        return False
    rows = max(shape[0], math.prod(shape[1:]))  # at most the fan-in, which is one of the two
    return tasks * math.prod(shape) * (rows + tasks + 5 * MOVED) > FIXED


FEWER_ROWS = Criterion(_fewer_rows, lambda shape, tasks: len(shape) > 1)
LESS_WORK = Criterion(_less_work, _large_enough)
NEVER = Criterion(lambda layer, tasks: False, lambda shape, tasks: False)
