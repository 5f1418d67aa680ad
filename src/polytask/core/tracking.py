"""What a rule remembers of gradients from step to step, parameter by parameter."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Tracker:
    """What a rule remembers of each parameter's stack, and what it sees in place of the stack.

    `function(stack, memory, *, ...) -> (seen, memory)`, all three [T, *shape], is called for each parameter before the
    rule is. The memory is 0 at the start; a task that is absent keeps its own. By keyword it may ask for parameters of
    the rule, and for `losses` and `norms` (lengths of the whole task vectors), float64 [T], and `state`, as the rule is
    about to see it.

    Attributes:
        function: pure; handles one element at a time, so that no result depends on how parameters are cut up.
        replaces: whether the seen stacks are what is combined too, or only what G is taken of.
    """

    function: Callable[..., tuple[Tensor, Tensor]]
    replaces: bool = True

    GIVEN = ("losses", "norms", "state")

    @property
    def keywords(self) -> list[str]:
        """What it asks for by keyword."""
        arguments = inspect.signature(self.function).parameters.values()
        return [argument.name for argument in arguments if argument.kind is inspect.Parameter.KEYWORD_ONLY]


def moved(
    memory: Float[Tensor, "T *shape"], stack: Float[Tensor, "T *shape"], shares: Float[Tensor, "T"]
) -> tuple[Float[Tensor, "T *shape"], Float[Tensor, "T *shape"]]:
    """What a tracker returns that averages: the memory, moved by each task's share of the way to the stack, twice."""
    memory = memory + times(shares, stack - memory)
    return memory.clone(), memory


def times(factors: Float[Tensor, "T"], stack: Float[Tensor, "T ..."]) -> Float[Tensor, "T ..."]:
    """Each task's row of a stack [T, *shape] times its factor, in the stack's precision."""
    return stack * factors.to(stack).view(-1, *[1] * (stack.dim() - 1))
