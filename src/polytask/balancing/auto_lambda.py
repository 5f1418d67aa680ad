"""Auto-Lambda: the weights that would have lowered the validation loss of the tasks that matter, learned step by step.

Source      Liu, James, Davison and Johns 2022, arXiv:2202.03091: the gradient, by the weights, of the primary tasks'
            validation loss after a virtual step of the network down the weighted training losses. Its second
            derivative is a finite difference of the training losses at the parameters plus and minus e v, where v is
            the validation gradient after the virtual step and e = 0.01 / |v|, as in Liu, Simonyan and Yang 2019
            (DARTS), arXiv:1806.09055. Then the network's step with the new weights.
Departures  the virtual step is a plain one of a size of its own, `virtual_step`, without the momentum or decay of the
            network's optimiser. The weights are learned by Adam. The defaults of the start and the learning rate are
            those of the authors' programme as it is known; they could not be checked.
Cost        two backward passes over the step's batch, two forward passes more on it, one forward and backward pass on
            the validation batch; one copy of the parameters.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from polytask.balancing.accumulation import own
from polytask.balancing.adam import AdamState, adam_start, adam_step
from polytask.balancing.engine import Combined
from polytask.balancing.session import VALIDATION, Session
from polytask.core.constraints import Interval, TaskNames
from polytask.core.rules import rule

DIFFERENCE = 0.01  # |e v|


class AutoLambdaState(NamedTuple):
    """Learned weights and their optimiser."""

    weight: Float[Tensor, "T"]
    adam: AdamState


def start(tasks: int, *, initial_weight: float) -> AutoLambdaState:
    return AutoLambdaState(torch.full((tasks,), initial_weight, dtype=torch.float64), adam_start(tasks))


@rule("auto_lambda", source="arXiv:2202.03091", needs=("forward", "validation"), scale="own", init=start)
def auto_lambda(
    session: Session,
    state: AutoLambdaState,
    *,
    primary: Annotated[Sequence[str] | None, TaskNames()] = None,
    initial_weight: Annotated[float, Interval(0, open="left")] = 0.1,
    learning_rate: Annotated[float, Interval(0, open="left")] = 1e-4,
    virtual_step: Annotated[float, Interval(0, open="left")] = 1e-2,
) -> tuple[Combined, AutoLambdaState]:
    """One step of the weights, then the gradient of the training losses with the new weights.

    Args:    session: the step.
             primary: the tasks whose validation loss counts; all by default, in a recipe those of role target.
             initial_weight: of every task.
             learning_rate: of the weights, for each step.
             virtual_step: the learning rate of the network's virtual step.
    Returns: gradients, the weights, and as `validation` each task's validation loss after the virtual step.
    """
    parameters = session.step.trainable
    weights = state.weight * session.step.priority
    descent = _weighted(session, weights, parameters)
    hypergradient, validation = _hypergradient(session, descent, primary, virtual_step)
    change, adam = adam_step(hypergradient * session.step.priority, state.adam, learning_rate)
    weight = state.weight + change
    grads = _weighted(session, weight * session.step.priority, parameters)
    pairs = [(parameters[name], own(grad)) for name, grad in grads.items()]
    scaled = weight * session.step.priority
    found = Combined(pairs, {"all": scaled}, {"all": "weighted"}, [], measured={"validation": validation})
    return found, AutoLambdaState(weight, adam)


def _weighted(session: Session, weights: Float[Tensor, "T"], parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The gradient of the weighted training losses."""
    shares = dict(zip(session.tasks, weights.tolist(), strict=True))
    parts = [shares[task] * loss for task, loss in session.step.losses.items()]
    total = sum(parts[1:], start=parts[0]) if parts else None
    return session.gradient(total, parameters, f"tasks {', '.join(session.tasks)}")


def _hypergradient(
    session: Session, descent: Mapping[str, Tensor], primary: Sequence[str] | None, size: float
) -> tuple[Float[Tensor, "T"], Float[Tensor, "T"]]:
    """(derivative of the validation loss after the virtual step by each weight, the tasks' validation losses there)."""
    named = session.step.trainable
    ahead = {name: (named[name].detach() - size * grad).requires_grad_() for name, grad in descent.items()}
    found = session.losses(ahead, VALIDATION)
    values = dict(zip(found.tasks, found.values.tolist(), strict=True))
    seen = torch.tensor([values.get(task, torch.nan) for task in session.tasks], dtype=torch.float64)
    priorities = dict(zip(found.tasks, session.priority(found.tasks).tolist(), strict=True))
    parts = [priorities[task] * loss for task, loss in found.local.items() if primary is None or task in primary]
    if not parts:  # no label of them in the batch
        return torch.zeros_like(seen), seen
    direction = session.gradient(sum(parts[1:], start=parts[0]), ahead, "the validation losses")
    norm = sum(float(grad.double().square().sum()) for grad in direction.values()) ** 0.5
    if norm == 0:
        return torch.zeros_like(seen), seen
    step = DIFFERENCE / norm
    above, below = (_values_at(session, direction, sign * step) for sign in (1, -1))
    return -size * (above - below) / (2 * step), seen


@torch.no_grad()
def _values_at(session: Session, direction: Mapping[str, Tensor], step: float) -> Float[Tensor, "T"]:
    """The training losses at the parameters plus a multiple of a direction."""
    named = session.step.trainable
    return session.losses({name: named[name] + step * grad for name, grad in direction.items()}).values
