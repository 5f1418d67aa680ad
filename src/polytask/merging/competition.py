"""PCB's scores, block by block: how much an element matters in its own task, and how well the others agree with it."""

from dataclasses import dataclass
from itertools import combinations_with_replacement
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from polytask.core.statistics import Scope
from polytask.merging.selection import Largest, Ranks


class Range(NamedTuple):
    """[T, T]: the least product of two tasks' elements and the greatest, float64."""

    low: Tensor
    high: Tensor

    def unit(self, X: Float[Tensor, "T n"], t: int, j: int) -> Float[Tensor, "n"]:
        """N(x_t x_j): the least product to 0, the greatest to 1; all to 0 where they are equal."""
        low, high = self.low[t, j], self.high[t, j]
        return (X[t] * X[j] - low) / (high - low) if high > low else torch.zeros_like(X[t])


class Sums(NamedTuple):
    """Of the softmaxes over a tensor, float64: [T, T] of exp N(x_t x_j), and [T] of exp T (N(x_t x_t) - 1)."""

    agreement: Tensor
    own: Tensor


class Competition(NamedTuple):
    """What must be known of a tensor; `ranks` tells which scores are the largest, None where all count."""

    range: Range
    sums: Sums
    ranks: Ranks | None

    def scores(self, block: Float[Tensor, "T n"]) -> Float[Tensor, "T n"]:
        """softmax(T N(x_t x_t)) sum_j softmax(N(x_t x_j)), float64."""
        X = block.double()
        agreement, own = torch.zeros_like(X), torch.empty_like(X)
        for t, j in _pairs(X):
            unit = self.range.unit(X, t, j)
            if t == j:
                own[t] = (len(X) * (unit - 1)).exp_() / self.sums.own[t]
            share = unit.exp_().div_(self.sums.agreement[t, j])
            for row in dict.fromkeys((t, j)):
                agreement[row] += share
        return own.mul_(agreement)


class _State(NamedTuple):
    """What is known so far; then the scores are ranked."""

    range: Range | None = None
    sums: Sums | None = None
    ranks: Any = None


@dataclass(frozen=True)
class Scores:
    """The statistic that gives a Competition.

    Args:
        density: share of its scores that count, of each task.
    """

    density: float
    scope: Scope = "tensor"

    def begin(self, tasks: int) -> _State:
        return _State()

    def visits(self, state: _State, block: int) -> bool:
        return state.ranks is None or self._largest(state).visits(state.ranks, block)

    def part(self, stack: Tensor, state: _State) -> Any:
        if state.ranks is not None:
            return self._largest(state).part(stack, state.ranks)
        return _range(stack.double()) if state.range is None else _sums(stack.double(), state.range)

    def add(self, total: Any, part: Any) -> Any:
        if isinstance(total, Range):
            return Range(torch.minimum(total.low, part.low), torch.maximum(total.high, part.high))
        if isinstance(total, Sums):
            return Sums(total.agreement + part.agreement, total.own + part.own)
        return self._largest(_State()).add(total, part)

    def end(self, state: _State, total: Any) -> tuple[_State, bool]:
        if isinstance(total, Range):
            return _State(total), True
        if isinstance(total, Sums):
            found = _State(state.range, total)
            return (found, False) if self.density == 1 else (found._replace(ranks=self._largest(found).begin(0)), True)
        ranks, more = self._largest(state).end(state.ranks, total)
        return state._replace(ranks=ranks), more

    def at(self, state: _State, block: int) -> Competition:
        assert state.range is not None
        assert state.sums is not None
        ranks = None if state.ranks is None else self._largest(state).at(state.ranks, block)
        return Competition(state.range, state.sums, ranks)

    def _largest(self, state: _State) -> Largest:
        """The statistic of the scores' ranks."""
        if state.range is None or state.sums is None:
            return Largest(torch.empty(0, 1), self.scope)
        scores = Competition(state.range, state.sums, None).scores
        return Largest(torch.full((len(state.sums.own), 1), self.density), self.scope, of=scores, least=1)


def _pairs(X: Float[Tensor, "T n"]) -> combinations_with_replacement:
    return combinations_with_replacement(range(len(X)), 2)


def _range(X: Float[Tensor, "T n"]) -> Range:
    low = X.new_full((len(X), len(X)), torch.inf)
    high = -low
    for t, j in _pairs(X) if X.shape[1] else ():
        low[t, j], high[t, j] = (X[t] * X[j]).aminmax()
    return Range(low, high)


def _sums(X: Float[Tensor, "T n"], of: Range) -> Sums:
    agreement, own = X.new_zeros(len(X), len(X)), X.new_zeros(len(X))
    for t, j in _pairs(X):
        unit = of.unit(X, t, j)
        agreement[t, j] = unit.exp().sum()
        if t == j:
            own[t] = (len(X) * (unit - 1)).exp().sum()
    return Sums(agreement, own)
