"""Runs a rule on an example, through as many steps as its state needs to matter."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from polytask.core.noise import Noise
from polytask.core.rules import RuleSpec
from polytask.core.state import Rule
from polytask.testing.examples import Example, examples

Change = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Outcome:
    """What a rule made of an example: the combined vector [P] and, for weights rules, the weights [T] and what they are
    of, [T, P]."""

    combined: Tensor
    weights: Tensor | None = None
    summed: Tensor | None = None

    @property
    def terms(self) -> float:
        """The lengths of the weighted terms, added up; 0 without weights."""
        if self.weights is None or self.summed is None:
            return 0.0
        return float(self.weights.abs() @ self.summed.norm(dim=1))


def as_matrices(vectors: Tensor) -> Tensor:
    """Each vector as a matrix, as square as its number of elements allows."""
    size = vectors.shape[1]
    rows = max((m for m in range(1, math.isqrt(size) + 1) if size % m == 0), default=1)
    return vectors.reshape(len(vectors), rows, size // rows).clone()


def suited(spec: RuleSpec) -> tuple[Example, ...]:
    """The examples with as many tasks as the rule takes."""
    return tuple(example for example in examples() if spec.tasks in (None, len(example.vectors)))


def some(spec: RuleSpec) -> Example:
    """A small example that the rule takes, with several tasks if it may."""
    return next(example for example in examples() if len(example.vectors) == (spec.tasks or 3))


def inputs(spec: RuleSpec, losses: Tensor, vectors: Tensor, step: int = 0) -> list[Tensor]:
    """The rule's inputs in its order, none of which shares memory with the arguments."""
    made = {
        "losses": lambda: losses.clone(),
        "gram": lambda: vectors @ vectors.T,
        "cross_gram": lambda: vectors @ another_batch(vectors).T,
        "stack": lambda: vectors.clone(),
        "counts": lambda: (
            1 + ((vectors != 0).sum(1).double() + 3 * step) % 4
        ),  # go with the task, and no scale changes them
        "validation": lambda: 1.1 * losses,
        "matrix": lambda: as_matrices(vectors),
        "base": lambda: torch.linspace(-1, 1, vectors.shape[1], dtype=vectors.dtype),
    }
    return [made[need]() for need in spec.needs]


def another_batch(vectors: Tensor) -> Tensor:
    """Vectors near the given ones, as another batch would give: the same tasks' in any order and at any scale, and such
    that the products of the two are not symmetric."""
    size = vectors.shape[1]
    turn = torch.from_numpy(Noise(7, size).normal(size * size).reshape(size, size)) * (0.3 / max(size, 1) ** 0.5)
    return vectors + vectors @ turn.to(vectors)


def call(rule: Rule, tasks: Sequence[str], losses: Tensor, vectors: Tensor, step: int = 0) -> Outcome:
    """What the rule makes of a step of one parameter, whose vectors its tracker sees first."""
    seen = vectors
    if rule.spec.tracker is not None:
        norms = vectors.norm(dim=1).double()
        seen = rule.tracked(tasks, "parameter", vectors.clone(), losses=losses.clone(), norms=norms)
    output = rule(tasks, *inputs(rule.spec, losses, seen, step))
    if rule.spec.returns == "combined":
        return Outcome(output.flatten())
    summed = seen if rule.spec.tracker is not None and rule.spec.tracker.replaces else vectors
    return Outcome(output.to(vectors.dtype) @ summed, output, summed)


def history(spec: RuleSpec, example: Example) -> list[tuple[Tensor, Tensor]]:
    """Losses and vectors of the steps that end with the example; a rule without state needs only the last one."""
    steps = []
    for step in range(3 if spec.init or spec.tracker else 0):
        noise = Noise(3, example.name, step)
        factor = torch.from_numpy(0.5 + noise.uniform(len(example.losses)))
        steps.append((example.losses * factor, example.vectors * factor[:, None]))
    return [*steps, (example.losses, example.vectors)]


def play(rule: Rule, tasks: Sequence[str], steps: Sequence[tuple[Tensor, Tensor]]) -> Outcome:
    """Calls the rule for each step, with an epoch after each; the outcome of the last one."""
    assert steps
    for step, (losses, vectors) in enumerate(steps):
        found = call(rule, tasks, losses, vectors, step)
        rule.advance()
        rule.after_step(tasks, losses * (0.9 - 0.4 * losses / losses.sum()))  # each falls by a part of its own
        rule.after_epoch()
    return found


def outcome(spec: RuleSpec, example: Example, *, scales: Tensor | None = None, order: Tensor | None = None) -> Outcome:
    """The rule on an example whose tasks are scaled (losses and vectors, at every step) or reordered."""
    steps = history(spec, example)
    if scales is not None:
        steps = [(losses * scales, vectors * scales[:, None]) for losses, vectors in steps]
    if order is not None:
        steps = [(losses[order], vectors[order]) for losses, vectors in steps]
    return play(Rule(spec, example.tasks), example.tasks, steps)
