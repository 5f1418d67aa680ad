"""Statistics: what a rule or transform must know of a whole tensor, layer or model before it sees any of it.

A statistic is declared beside the function (`statistic=`), a builder from those of the function's parameters that it
names, which may answer None where nothing need be known (a density of 1). It is measured block by block over the values
that reach the function, in one pass or several, and what `at` gives is handed to the function as `measured`:

    @rule("mean_over_norm", ..., needs=("stack",), statistic=lambda: Norms())
    def mean_over_norm(stack, measured): ...

Parts are added in the order of the blocks, so floating-point sums have the same bits for any number of threads.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import reduce
from typing import Any, Literal, Protocol, runtime_checkable

from torch import Tensor

Scope = Literal["tensor", "layer", "all"]
SCOPES: tuple[Scope, ...] = ("tensor", "layer", "all")


@runtime_checkable
class Statistic(Protocol):
    """A reduction over blocks. Its state is a value (a NamedTuple, a tensor); nothing is kept in the object."""

    @property
    def scope(self) -> Scope:
        """Over what it is taken: one tensor, the tensors of a layer (the plan's `group`), or the whole model."""
        ...

    def begin(self, tasks: int) -> Any:
        """The state before the first pass."""
        ...

    def part(self, stack: Tensor, state: Any) -> Any:
        """What one block [T, n] adds to the present pass. Pure; blocks may be empty and run in any thread."""
        ...

    def add(self, total: Any, part: Any) -> Any:
        """The sum of two neighbours, the first of which may be changed. Called in the order of the blocks."""
        ...

    def end(self, state: Any, total: Any) -> tuple[Any, bool]:
        """The state after a pass, and whether there is to be another."""
        ...

    def at(self, state: Any, block: int) -> Any:
        """What the function is given for the block with this number, counted over the whole scope."""
        ...


def visits(statistic: Statistic, state: Any, block: int) -> bool:
    """Whether the present pass looks at this block of a tensor, counted from 0, which it always does.

    A statistic says so by a method of this name, (state, block); one without it looks at every block.
    """
    chooses = getattr(statistic, "visits", None)
    return block == 0 or chooses is None or chooses(state, block)


def located(statistic: Statistic, state: Any, layers: Sequence[str]) -> Any:
    """The first state of a statistic that wants to know in which layer each block is.

    A statistic says so by a method of this name, (state, layers), the layers being those of all blocks in order.
    """
    wants = getattr(statistic, "located", None)
    return state if wants is None else wants(state, layers)


def measure(statistic: Statistic, tasks: int, blocks: Callable[[], Iterable[Tensor]]) -> Any:
    """The statistic's last state; `blocks` is called once a pass."""
    state, more = statistic.begin(tasks), True
    while more:
        chosen = (block for number, block in enumerate(blocks()) if visits(statistic, state, number))
        total = reduce(statistic.add, (statistic.part(block, state) for block in chosen))
        state, more = statistic.end(state, total)
    return state
