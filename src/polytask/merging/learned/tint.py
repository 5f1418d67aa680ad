"""Model tinting: coefficients and one layer of each task's own, learned together from what the experts are sure of.

Source      Jung et al. 2024, arXiv:2412.19098: a merged model keeps a single trainable layer for each task; merging
            coefficients and these layers are learned together at test time, without labels, on samples that are chosen
            by how much more confident the individual model is than the merged one.
Departures  the paper was to be had only in part. A sample counts where the expert's entropy is at most the merged
            model's, and what is minimised there is the divergence of the merged model's prediction from the expert's.
            By default the layer is what a task's model has to itself already, its head, so that the output has a place
            for it; `layer` names a merged one instead, of which each task gets a copy (in the output's `private/`).
Cost        a step passes one batch of every task forward twice (once through the expert) and backward once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from polytask.core.constraints import Interval
from polytask.core.errors import MissingInput, UnknownName
from polytask.merging.coefficients import Each, by_task, scaled
from polytask.merging.composing import Composition
from polytask.merging.descending import LearningRate, Steps, descend, facts_of
from polytask.merging.distributions import divergences, entropies
from polytask.merging.learning import Learned, learned
from polytask.merging.session import MergeSession


@dataclass(frozen=True)
class Tinted(Composition):
    """A composition, and a difference that one task adds to some of its weights."""

    inner: Composition
    added: Mapping[str, Tensor]

    def leaves(self, name: str) -> tuple[Tensor, ...]:
        return (*self.inner.leaves(name), *([self.added[name]] if name in self.added else []))

    def weight(self, name: str, leaves: Sequence[Tensor]) -> Tensor:
        if name not in self.added:
            return self.inner.weight(name, leaves)
        *inner, added = leaves
        return self.inner.weight(name, inner) + added


@learned("tint", source="arXiv:2412.19098")
def tint(
    session: MergeSession,
    *,
    layer: str = "",
    each: Each = "layer",
    start: Annotated[float, Interval()] = 0.3,
    steps: Steps = 500,
    learning_rate: LearningRate = 1e-3,
) -> Learned:
    """Coefficients, and a layer a task.

    Args:    layer: the beginning of the names of a merged layer; without one, the layer is the task's head.
             each, start: of the coefficients.
             steps: of Adam, each on one batch of every task.
             learning_rate: of Adam, for all that is learned.
    """
    scaling = scaled(session.vectors, each, start)
    heads = {task: _heads(session, task) if not layer else {} for task in session.tasks}
    added = {task: _layer(session, layer) if layer else {} for task in session.tasks}
    weights = {task: session.composed(Tinted(scaling, added[task])) for task in session.tasks}
    leaves = [
        scaling.coefficients,
        *(own for part in (heads, added) for each_ in part.values() for own in each_.values()),
    ]

    def divergence(task: str, batch: Any, step: int) -> Tensor | None:
        merged = session.forward(weights[task], task, batch, own=heads[task])
        with torch.no_grad():
            expert = session.forward(session.vectors.expert(task), task, batch)
        found = []
        for head, outputs in merged.items():
            kind = session.labelled(task, head, outputs)
            # what is not a number counts, so that it is found
            surer = ~(entropies(expert[head], kind) > entropies(outputs.detach(), kind))
            if bool(surer.any()):
                found.append(divergences(expert[head], outputs, kind)[surer].mean())
        return torch.stack(found).sum() if found else None

    history = descend(session, leaves, divergence, steps=steps, optimizer=torch.optim.Adam(leaves, lr=learning_rate))
    private = {task: {name: value.detach() for name, value in own.items()} for task, own in heads.items() if own}
    if layer:
        with torch.no_grad():
            private = {task: {n: weights[task][n].clone() for n in own} for task, own in added.items()}
    return Learned(
        by_task(scaling.coefficients, session.tasks, scaling.groups), private=private, facts=facts_of(history)
    )


def _heads(session: MergeSession, task: str) -> dict[str, Tensor]:
    """Leaves that start at what the task's model has to itself."""
    found = {name: value.clone().requires_grad_() for name, value in session.private(task).items()}
    if not found:
        allowed = "name a merged one, layer: its beginning"
        raise MissingInput(f"learned merge 'tint': the model of task {task!r} has no layer of its own; {allowed}")
    return found


def _layer(session: MergeSession, layer: str) -> dict[str, Tensor]:
    names = [name for name in session.trainable() if name == layer or name.startswith(f"{layer}.")]
    if not names:
        raise UnknownName("merged layer", layer, session.trainable(), "learned merge 'tint'")
    return {name: torch.zeros(session.vectors.shape(name), requires_grad=True) for name in names}
