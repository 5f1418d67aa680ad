"""GradVac: turns each task's gradient towards another's until their cosine is what it has been on average.

Source      Wang, Tsvetkov, Firat and Cao 2021, "Gradient vaccine", arXiv:2010.05874, Algorithm 1, equations 2 and 3.
Departures  none in exact arithmetic. It works on the Gram matrix: a turned gradient is a combination of the tasks'
            gradients, and only its coefficients are kept. Its components are the balancer's `groups`. The paper does
            not say what an undefined cosine means: a zero gradient, and one that was turned to zero, is left alone,
            and so is its average. The target is at most 1 - 1e-6, since reaching 1 takes an infinite multiple.
Cost        O(T^3) time, O(T^2) memory; no copy of the gradients.
"""

from typing import Annotated, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from polytask.core.constraints import Interval
from polytask.core.geometry import unit_gram
from polytask.core.noise import Noise
from polytask.core.rules import rule

_HIGHEST = 1 - 1e-6
_ROUNDING = 1e-14  # of a squared length, relative to that of its terms


class GradvacState(NamedTuple):
    """Moving averages of the cosines; row: the task that is turned."""

    cosine: Float[Tensor, "T T"]


def start(tasks: int) -> GradvacState:
    return GradvacState(torch.zeros(tasks, tasks, dtype=torch.float64))


@rule(
    "gradvac",
    source="arXiv:2010.05874, Algorithm 1",
    needs=("gram",),
    scale="sum",
    claims=("homogeneous", "nonnegative_weights", "linear_under_scaling"),
    init=start,
)
def gradvac(
    gram: Float[Tensor, "T T"],
    state: GradvacState,
    *,
    beta: Annotated[float, Interval(0, 1)] = 0.01,
    noise: Noise,
) -> tuple[Float[Tensor, "T"], GradvacState]:
    """Weights w such that the update is sum_t w[t] * g[t].

    Args:    gram: inner products of the task vectors (units of g squared).
             beta: share of the newest cosine in the moving average.
             noise: decides the order in which each task meets the others.
    Returns: dimensionless weights, all 1 when every cosine is at least its average; the averages after this step.
    """
    unit, norms = unit_gram(gram.numpy())
    average = state.cosine.numpy().copy()
    coefficients = _turned(unit, average, _order(len(unit), noise), beta)
    return torch.from_numpy(norms @ coefficients / norms), GradvacState(torch.from_numpy(average))


def _order(tasks: int, noise: Noise) -> np.ndarray:
    """[T - 1, T]: column i has the other tasks in random order."""
    keys = noise.raw(tasks * tasks).reshape(tasks, tasks)
    keys[np.arange(tasks), np.arange(tasks)] = np.iinfo(keys.dtype).max  # itself last
    return np.ascontiguousarray(np.argsort(keys, axis=1, kind="stable").T[:-1])


def _turned(unit: np.ndarray, average: np.ndarray, order: np.ndarray, beta: float) -> np.ndarray:
    """Row i: the turned gradient of task i as coefficients of the unit gradients; changes `average` in place."""
    tasks = len(unit)
    starts = tasks * np.arange(tasks)
    coefficients, products = np.eye(tasks), unit.copy()  # its products with every unit gradient
    lengths, terms = np.ones(tasks), np.ones(tasks)  # `terms`: sums of the coefficients, which are never negative
    exists = unit.diagonal() > 0
    defined = exists.copy()
    all_exist = bool(exists.all())
    for met in order:  # the tasks that each i meets next; the i do not depend on one another
        pairs = starts + met
        cosine, target = products.take(pairs) / lengths, average.take(pairs)
        known = defined if all_exist else defined & exists[met]
        average.put(pairs, np.where(known, (1 - beta) * target + beta * cosine, target))
        goal = np.minimum(target, _HIGHEST)
        turned = np.flatnonzero(known & (cosine < goal))
        if not len(turned):
            continue
        phi, goal, j, length = np.maximum(cosine[turned], -1.0), goal[turned], met[turned], lengths[turned]
        added = length * (goal / np.sqrt(1 - goal**2) * np.sqrt(1 - phi**2) - phi)
        square = length**2 + added * (2 * length * phi + added)
        terms[turned] += added
        remains = square > _ROUNDING * terms[turned] ** 2
        lengths[turned] = np.sqrt(np.where(remains, square, 1.0))
        defined[turned] = remains
        coefficients[turned, j] += added
        products[turned] += added[:, None] * unit[j]
    return coefficients
