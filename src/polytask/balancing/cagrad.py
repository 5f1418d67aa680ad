"""CAGrad: near the mean gradient, the direction that improves the worst-off task most.

Source      Liu, Liu, Jin, Stone and Liu 2021, "Conflict-averse gradient descent for multi-task learning",
            arXiv:2110.14048, Algorithm 1: with g_0 the mean, d maximises min_t g_t . d over |d - g_0| <= c |g_0|.
Departures  the inner problem is solved exactly, where the authors' code takes 20 steps of SGD. `rescale` none is
            Algorithm 1; the authors' code divides by 1 + c^2 (its default) or 1 + c. Where several d are best, that is
            at Pareto-stationary points (a zero gradient among them), when leaving every loss as it is is within reach,
            the nearest to g_0 is taken: its projection onto the directions that conflict with no task. torchjd 0.18
            hands the inner problem to an interior-point solver, whose accuracy leaves it up to 1.1e-4 of its length
            away on random Jacobians, and returns 0 where the combination of the tasks is shorter than 1e-4. LibMTL
            1.1.5 takes three tasks only, and ends up to 2.7e-4 of its length away.
Cost        a few solves of size T; where those do not settle, a few bounded quadratic programs.
"""

import math
from typing import Annotated

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from polytask.core.constraints import Choice, Interval
from polytask.core.geometry import hull_reaches_origin, unit_gram
from polytask.core.quadratic import nonnegative_quadratic
from polytask.core.rules import rule

_SHIFT = 1e-14  # on the unit diagonal, so that dependent gradients are no special case


@rule(
    "cagrad",
    source="arXiv:2110.14048, Algorithm 1",
    needs=("gram",),
    scale="own",
    claims=("permutation", "homogeneous", "nonnegative_weights"),
    trials=({"c": 0.1}, {"c": 2.0, "rescale": "1 + c"}),
)
def cagrad(
    gram: Float[Tensor, "T T"],
    *,
    c: Annotated[float, Interval(0)] = 0.5,
    rescale: Annotated[str, Choice("none", "1 + c^2", "1 + c")] = "none",
) -> Float[Tensor, "T"]:
    """Weights 1 / T + y_t with y >= 0: the dual solution, scaled to the radius c |g_0|.

    Args:    gram: inner products of the task vectors (units of g squared).
             c: radius of the ball, relative to the mean gradient; 0 is the mean, 1 and more conflicts with no task.
             rescale: what the result is divided by.
    Returns: dimensionless weights; a single task's gradient comes back times 1 + c before `rescale`.
    """
    divisor = {"none": 1.0, "1 + c^2": 1 + c**2, "1 + c": 1 + c}[rescale]
    unit, norms = unit_gram(gram.numpy())
    tasks = len(unit)
    weights = np.full(tasks, 1 / tasks)
    inner = unit @ norms / tasks  # of the unit gradients with g_0
    mean_norm = math.sqrt(max(0.0, float(norms * unit.diagonal() @ inner) / tasks))
    if c > 0 and mean_norm > 0:
        present = np.flatnonzero(unit.diagonal() > 0)
        problem = _Improvement(unit[np.ix_(present, present)], norms[present], inner[present] / mean_norm, c)
        weights[present] += problem.solution(all_present=len(present) == tasks) * mean_norm / norms[present]
    return torch.from_numpy(weights / divisor)


class _Improvement:
    """max t over |u| <= radius with U u >= t v - h: what can be gained beyond the mean gradient, whose length is 1.

    For a given t the shortest u is U^T y, y >= 0 the solution of a quadratic program, and its length grows with t. On
    the set of positive y it is a known function of t, so the t that uses up the radius is the root of a quadratic
    equation.
    """

    def __init__(self, unit: np.ndarray, norms: np.ndarray, inner: np.ndarray, radius: float) -> None:
        self.unit, self.h, self.radius = unit, inner, radius
        self.v = norms.min() / norms

    def solution(self, *, all_present: bool) -> np.ndarray:
        """y; `all_present` is False if a zero vector keeps t from being positive."""
        fast = self._by_exchange()
        return fast if fast is not None and all_present else self._by_bracketing(all_present)

    def _by_exchange(self) -> np.ndarray | None:
        """Exchanges every variable that violates a condition; None if that does not end in the optimum."""
        chosen = self.h < 0
        chosen[(self.h / self.v).argmin()] = True
        for _ in range(12):
            index = np.flatnonzero(chosen)
            t, positive = self._root(index)
            size = float(np.abs(positive).sum())
            if not math.isfinite(t) or size > 1e6 * self.radius:
                return None  # vectors that cancel
            y = np.zeros_like(self.h)
            y[index] = positive
            slack = self.unit @ y - (t * self.v - self.h)
            violated = np.where(chosen, y < -1e-13 * self.radius, slack < -1e-13 * (1 + size))
            if not violated.any():
                return np.maximum(y, 0.0)
            chosen ^= violated
            if not chosen.any():
                return None
        return None

    def _root(self, index: np.ndarray) -> tuple[float, np.ndarray]:
        """(t, y) where the conditions of `index` hold with equality and use up the radius; t is NaN if none do."""
        system = self.unit[np.ix_(index, index)]
        system[np.arange(len(index)), np.arange(len(index))] += _SHIFT
        v, h = self.v[index], self.h[index]
        p, q = np.linalg.solve(system, np.stack([v, h], axis=1)).T
        a, b, rest = float(v @ p), float(v @ q), float(h @ q) - self.radius**2
        discriminant = b * b - a * rest
        t = (b + math.sqrt(discriminant)) / a if discriminant >= 0 and a > 0 else math.nan
        return t, t * p - q

    def _at(self, t: float) -> tuple[np.ndarray, float]:
        """(y, length of u) for a given t."""
        y = nonnegative_quadratic(self.unit, (t * self.v - self.h)[None])[0]
        return y, math.sqrt(max(0.0, float(y @ self.unit @ y)))

    def _by_bracketing(self, all_present: bool) -> np.ndarray:
        y, length = self._at(0.0)
        low, high = float((self.h / self.v).min()), float(((self.h + self.radius) / self.v).min())
        low_length, high_length = 0.0, math.inf
        if length > self.radius:
            high, high_length = 0.0, length
        elif not all_present or hull_reaches_origin(self.unit, self.v):
            return y
        else:
            low, low_length = 0.0, length
        t = 0.0
        for iteration in range(100):
            index = np.flatnonzero(y)
            last, (t, positive) = t, self._root(index) if len(index) else (math.nan, y)
            if abs(t - last) <= 1e-9 * abs(last) and (positive >= 0).all():
                y[index] = positive
                break
            if not low < t < high:  # the tangent, which ends at or above the root of the convex length
                slope = float(self.v @ y) / length if length > 0 else 0.0
                t = last + (self.radius - length) / slope if slope > 0 else math.nan
            if not low < t < high:  # the chord, which ends at or below it; every other time the middle
                chord = high_length < math.inf and iteration % 2 == 0
                share = (self.radius - low_length) / (high_length - low_length) if chord else 0.5
                t = low + share * (high - low)
            y, length = self._at(t)
            if abs(length - self.radius) <= 1e-9 * self.radius or high - low <= 1e-14 * max(abs(low), abs(high)):
                break
            if length < self.radius:
                low, low_length = t, length
            else:
                high, high_length = t, length
        return y
