"""What parts of a model note while they compute, for whoever listens: gates' weights, terms for a task's loss.

    with listen() as tape:
        outputs = model(inputs, tasks)
    tape.penalties          # {task: 0-d tensor}, to be added to the task's loss
    tape.gates              # {(place, task): {expert: [rows]}}

Nothing is kept, and nothing extra is computed, while nobody listens.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass
class Tape:
    """Attributes:
    penalties: task -> the sum of the terms that its gates add to its loss.
    gates: (place in the model, task) -> expert -> its weights, [rows], without a graph.
    experts: (place in the model, expert) -> what it gave, [rows, width], without a graph.
    features: (place in the model, task) -> an inner map, [rows, width, h, w], with its graph, for heads beside it.
    guesses: task -> (weight of the loss, outputs of such a head), to be added to the task's loss.
    stages: task -> what its own head may read before the last, with its graph, in order.
    earlier: task -> what its head made of those.
    notes: name -> what an architecture leaves for what is trained beside it, with its graph.
    shares: task -> the weight of the loss at each of its stages and at the last, where there is one at the earlier too.
    """

    penalties: dict[str, Tensor] = field(default_factory=dict)
    gates: dict[tuple[str, str], dict[str, Tensor]] = field(default_factory=dict)
    experts: dict[tuple[str, str], Tensor] = field(default_factory=dict)
    features: dict[tuple[str, str], Tensor] = field(default_factory=dict)
    guesses: dict[str, list[tuple[float, Tensor]]] = field(default_factory=dict)
    stages: dict[str, list[Tensor]] = field(default_factory=dict)
    earlier: dict[str, list[Tensor]] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    shares: dict[str, float] = field(default_factory=dict)


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


def note_gate(place: str, task: str, experts: Sequence[str], weights: Tensor) -> None:
    """Called by a gate with the weights, [rows, experts], that it gave to these experts."""
    tape = _listening.get()
    if tape is not None:
        tape.gates[place, task] = dict(zip(experts, weights.detach().unbind(1), strict=True))


def note_penalty(task: str, term: Tensor) -> None:
    """Called by a part whose method adds a term to a task's loss."""
    tape = _listening.get()
    if tape is not None:
        tape.penalties[task] = tape.penalties[task] + term if task in tape.penalties else term


def listening() -> bool:
    """Whether there is a tape: what serves nothing else need not be computed without one."""
    return _listening.get() is not None


def note_experts(place: str, experts: Sequence[str], outputs: Tensor) -> None:
    """Called with what experts gave, [experts, rows, width]."""
    tape = _listening.get()
    if tape is not None:
        tape.experts |= {(place, name): output for name, output in zip(experts, outputs.detach(), strict=True)}


def numbered(owner: str, experts: int) -> list[str]:
    """The names of an owner's experts: a task's, a group's, or those shared by all."""
    return [f"{owner} {number}" for number in range(1, experts + 1)]


def note_features(place: str, task: str, maps: Tensor) -> None:
    """Called in training with an inner map that an auxiliary head may read."""
    tape = _listening.get()
    if tape is not None:
        tape.features[place, task] = maps


def noted_features() -> dict[tuple[str, str], Tensor]:
    """What parts have noted so far; nothing while nobody listens."""
    tape = _listening.get()
    return {} if tape is None else tape.features


def note_guess(task: str, weight: float, outputs: Tensor) -> None:
    """Called with what an auxiliary head gave."""
    tape = _listening.get()
    if tape is not None:
        tape.guesses.setdefault(task, []).append((weight, outputs))


def note_stages(task: str, features: Sequence[Tensor], learns: bool) -> None:
    """Called by an architecture whose heads may predict before the last: what they would read, [rows, width] each.

    `learns`: the task's loss is then the mean over these and the last, else that of the last alone.
    """
    tape = _listening.get()
    if tape is not None:
        tape.stages[task] = list(features)
        if learns:
            tape.shares[task] = 1 / (len(features) + 1)


def noted_stages(task: str) -> list[Tensor]:
    """What its head may read before the last, in order; nothing while nobody listens."""
    tape = _listening.get()
    return [] if tape is None else tape.stages.get(task, [])


def note_earlier(task: str, outputs: Sequence[Tensor]) -> None:
    """Called by a model with what its head made of those."""
    tape = _listening.get()
    if tape is not None:
        tape.earlier[task] = list(outputs)


def note(name: str, what: Any) -> None:
    """Called by an architecture with what is trained beside it needs."""
    tape = _listening.get()
    if tape is not None:
        tape.notes[name] = what


def noted(name: str) -> Any:
    """What the pass has noted under this name; None where it has not, or nobody listens."""
    tape = _listening.get()
    return None if tape is None else tape.notes.get(name)
