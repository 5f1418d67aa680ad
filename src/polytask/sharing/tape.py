"""What parts of a model note while they compute, for whoever listens: gates' weights, terms for a task's loss.

    with listen() as tape:
        outputs = model(inputs, tasks)
    tape.penalties          # {task: 0-d tensor}, to be added to the task's loss
    tape.gates              # {(place, task): [rows, experts]}

Nothing is kept, and nothing extra is computed, while nobody listens.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class Tape:
    """Attributes:
    penalties: task -> the sum of the terms that its gates add to its loss.
    gates: (place in the model, task) -> the weights of the experts, [rows, experts], without a graph.
    experts: place in the model -> the experts' outputs, [experts, rows, width], without a graph.
    """

    penalties: dict[str, Tensor] = field(default_factory=dict)
    gates: dict[tuple[str, str], Tensor] = field(default_factory=dict)
    experts: dict[str, Tensor] = field(default_factory=dict)


_listening: ContextVar[Tape | None] = ContextVar("tape", default=None)


@contextmanager
def listen() -> Iterator[Tape]:
    """A tape that is written while the block runs, in this thread."""
    tape = Tape()
    token = _listening.set(tape)
    try:
        yield tape
    finally:
        _listening.reset(token)


def note_gate(place: str, task: str, weights: Tensor, penalty: Callable[[], Tensor | None]) -> None:
    """Called by a gate with the weights that it gave, and with what its method adds to the task's loss."""
    tape = _listening.get()
    if tape is None:
        return
    tape.gates[place, task] = weights.detach()
    term = penalty()
    if term is not None:
        note_penalty(task, term)


def note_penalty(task: str, term: Tensor) -> None:
    """Called by a part whose method adds a term to a task's loss."""
    tape = _listening.get()
    if tape is not None:
        tape.penalties[task] = tape.penalties[task] + term if task in tape.penalties else term


def listening() -> bool:
    """Whether there is a tape: what serves nothing else need not be computed without one."""
    return _listening.get() is not None


def note_experts(place: str, outputs: Tensor) -> None:
    """Called by experts with their outputs, [experts, rows, width]."""
    tape = _listening.get()
    if tape is not None:
        tape.experts[place] = outputs.detach()
