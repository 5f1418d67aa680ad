"""MAXL: a network generates the labels of an auxiliary task, so that learning them lowers the primary tasks' loss.

Source      Liu, Davison and Johns 2019, arXiv:1901.08933: the network learns primary and auxiliary losses together; the
            generator's loss is the primary loss after a step of the network down both, on the same batch, plus a weight
            times an entropy term that keeps the labels from collapsing into a few classes. Its gradient goes through
            the network's gradient: a double gradient. `polytask.sharing.LabelGenerator` has the labels' masked softmax.
Departures  both networks step at once, from the same parameters (the paper: by turns, an epoch each); the virtual step
            is a plain one of a size of its own. The double gradient is exact: the derivative of the network's gradient
            by the generator times the primary gradient after the step, so nothing is unrolled and processes add up.
Cost        one backward pass of the losses that itself is differentiated once, and one forward and backward pass more;
            one copy of the parameters.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated

import torch
from torch import Tensor

from polytask.balancing.accumulation import own, usable_graph
from polytask.balancing.engine import Combined
from polytask.balancing.session import Session
from polytask.core.constraints import Beginning, Interval, TaskNames
from polytask.core.errors import MissingInput
from polytask.core.rules import rule


@rule("maxl", source="arXiv:1901.08933", needs=("forward",), scale="sum")
def maxl(
    session: Session,
    *,
    primary: Annotated[Sequence[str] | None, TaskNames()] = None,
    generator: Annotated[str, Beginning()] = "generator",
    virtual_step: Annotated[float, Interval(0, open="left")] = 0.01,
    entropy_weight: Annotated[float, Interval(0)] = 0.2,
) -> Combined:
    """The sum of the losses for the network, and for the generator the primary losses after the network's step.

    Args:    session: the step.
             primary: the tasks that matter; all by default, in a recipe those of role target.
             generator: what the names of the generator's parameters begin with.
             virtual_step: the learning rate of the network's virtual step.
             entropy_weight: times the losses that depend on the generator alone.
    Returns: gradients of both, and as `ahead` each task's loss after the virtual step.
    """
    network, generating = _parted(session, generator)
    losses = dict(zip(session.tasks, session.step.priority.tolist(), strict=True))
    regularizing = _of_the_generator_alone(session, network)
    learned = _sum(session.step.losses, {t: factor for t, factor in losses.items() if t not in regularizing})
    what = f"tasks {', '.join(session.tasks)}"
    descent = _differentiable(session, learned, network)
    summed = session.summed(descent, network, what)
    ahead = {name: (network[name].detach() - virtual_step * grad).requires_grad_() for name, grad in summed.items()}
    found = session.losses(ahead)
    chosen = {task: losses[task] for task in session.tasks if primary is None or task in primary}
    reached = session.gradient(
        _sum(found.local, {t: factor for t, factor in chosen.items() if t not in regularizing}),
        {**ahead, **generating},
        "the primary losses",
    )
    cotangents = {name: -virtual_step * reached[name] for name in ahead if name in reached}
    spread = _sum(session.step.losses, {task: entropy_weight * losses[task] for task in regularizing})
    grads: dict[str, Tensor] = {}
    for part in (
        _through(session, descent, cotangents, generating),
        {name: grad for name, grad in reached.items() if name in generating},
        session.gradient(spread, generating, "the generator's own losses"),
    ):
        grads |= {name: grads[name] + grad if name in grads else grad for name, grad in part.items()}
    pairs = [(network[name], own(grad)) for name, grad in summed.items()]
    pairs += [(generating[name], own(grad)) for name, grad in grads.items()]
    weights = [factor * (entropy_weight if task in regularizing else 1.0) for task, factor in losses.items()]
    shown = torch.tensor(weights, dtype=torch.float64)
    return Combined(pairs, {"all": shown}, {"all": "double gradient"}, [], measured={"ahead": found.values})


def _parted(session: Session, generator: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(the network's parameters, the generator's)."""
    named = session.step.trainable
    generating = {name: each for name, each in named.items() if name == generator or name.startswith(f"{generator}.")}
    if not generating:
        begin = ", ".join(dict.fromkeys(name.partition(".")[0] for name in named))
        raise MissingInput(
            f"rule 'maxl': no trained parameter of the generator {generator!r}; names begin with {begin}"
        )
    return {name: each for name, each in named.items() if name not in generating}, generating


def _of_the_generator_alone(session: Session, network: Mapping[str, Tensor]) -> list[str]:
    """The tasks that reach no parameter of the network: what regularizes the generator."""
    part = session.partition()
    rows = [row for row, name in enumerate(part.parameters) if name in network]
    reaching = part.reaches[rows].any(0).tolist()
    return [task for task, reaches in zip(session.tasks, reaching, strict=True) if not reaches]


def _sum(losses: Mapping[str, Tensor], factors: Mapping[str, float]) -> Tensor | None:
    """This process's part of the weighted sum; None if it has none."""
    parts = [factor * losses[task] for task, factor in factors.items() if task in losses]
    return sum(parts[1:], start=parts[0]) if parts else None


def _differentiable(session: Session, loss: Tensor | None, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """This process's gradient, with its own graph."""
    if loss is None:
        return {}
    with usable_graph(f"tasks {', '.join(session.tasks)}", session.step.number):
        grads = torch.autograd.grad(loss, [*parameters.values()], create_graph=True, allow_unused=True)
    return {name: grad for name, grad in zip(parameters, grads, strict=True) if grad is not None}


def _through(
    session: Session, grads: Mapping[str, Tensor], cotangents: Mapping[str, Tensor], parameters: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The derivative by the parameters of the inner product of the gradients with the cotangents, over processes."""
    parts = [(grads[name] * cotangents[name]).sum() for name in cotangents if name in grads]
    total = sum(parts[1:], start=parts[0]) if parts else None
    depends = total is not None and total.requires_grad
    return session.gradient(total if depends else None, parameters, "the generator")
