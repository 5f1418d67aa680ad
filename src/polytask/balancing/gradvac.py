"""GradVac: turns each task's gradient towards another's until their cosine is what it has been on average.

Source      Wang, Tsvetkov, Firat and Cao 2021, "Gradient vaccine", arXiv:2010.05874, Algorithm 1.
Departures  none in exact arithmetic. It works on the Gram matrix: a turned gradient is a combination of the tasks'
            gradients, and only its coefficients are kept. Its components are the balancer's `groups`. The paper does
            not say what an undefined cosine means: a zero gradient, and one that was turned to zero, is left alone,
            and so is its average. The target is at most 1 - 1e-6, since reaching 1 takes an infinite multiple. torchjd
            0.18 draws orders of its own and has beta 0.5; with two tasks, where there is no order, the two agree.
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
from polytask.core.state import zeros

_HIGHEST = 1 - 1e-6
_ROUNDING = 1e-14  # of a squared length, relative to that of its terms


class GradvacState(NamedTuple):
    """Moving averages of the cosines; row: the task that is turned."""

    cosine: Float[Tensor, "T T"]


@rule(
    "gradvac",
    source="arXiv:2010.05874, Algorithm 1",
    needs=("gram",),
    scale="sum",
    claims=("homogeneous", "nonnegative_weights", "linear_under_scaling"),
    init=zeros(GradvacState),
    trials=({"beta": 0.5},),
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
    before = state.cosine.numpy()
    coefficients, cosines = _turned(unit, np.minimum(before, _HIGHEST), _order(len(unit), noise))
    after = np.where(np.isnan(cosines), before, (1 - beta) * before + beta * cosines)
    return torch.from_numpy(norms @ coefficients / norms), GradvacState(torch.from_numpy(after))


def _order(tasks: int, noise: Noise) -> np.ndarray:
    """[T - 1, T]: column i has the other tasks in random order."""
    keys = noise.raw(tasks * tasks).reshape(tasks, tasks)
    keys[np.arange(tasks), np.arange(tasks)] = np.iinfo(keys.dtype).max  # itself last
    return np.ascontiguousarray(np.argsort(keys, axis=1, kind="stable").T[:-1])


def _turned(unit: np.ndarray, goals: np.ndarray, order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(row i: the turned gradient of task i as coefficients of the unit gradients; the cosines met, NaN if undefined).

    Turning a vector of length l whose cosine is phi until it is goal adds l (goal sqrt(1 - phi^2) / sqrt(1 - goal^2) -
    phi) of the other's unit vector.
    """
    tasks = len(unit)
    starts = tasks * np.arange(tasks)
    coefficients, cosines = np.eye(tasks), np.full((tasks, tasks), np.nan)
    slopes = goals / np.sqrt(1 - goals**2)
    exists = unit.diagonal() > 0
    lengths = np.where(exists, 1.0, np.nan)  # NaN: without a direction
    other = np.where(exists, 0.0, np.nan)
    terms = np.ones(tasks)  # sums of the coefficients, which are never negative
    for met in order:  # the tasks that each i meets next; the i do not depend on one another
        pairs = starts + met
        cosine = np.einsum("ij,ij->i", coefficients, unit.take(met, 0)) / lengths + other.take(met)
        cosines.put(pairs, cosine)
        turned = np.flatnonzero(cosine < goals.take(pairs))
        if not len(turned):
            continue
        phi, length = np.maximum(cosine.take(turned), -1.0), lengths.take(turned)
        pairs = pairs.take(turned)
        added = length * (slopes.take(pairs) * np.sqrt(1 - phi**2) - phi)
        square = length**2 + added * (2 * length * phi + added)
        coefficients.put(pairs, coefficients.take(pairs) + added)
        terms[turned] += added
        remains = square > _ROUNDING * terms.take(turned) ** 2
        lengths[turned] = np.sqrt(np.where(remains, square, np.nan))
    return coefficients, cosines
