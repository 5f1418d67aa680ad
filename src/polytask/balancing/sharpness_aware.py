"""Task-wise sharpness-aware minimisation around any rule: it seeks a region where every task's loss is low and flat.

Source      Phan et al. 2022, arXiv:2211.13723: for every task the gradient g at the parameters and g' at the parameters
            plus radius g / |g|, the shared parameters and the task's own scaled apart; the inner rule combines the
            low-loss parts g and, by themselves, the flat parts g' - g, and the two results are added. A task's own
            parameters get g'. Perturbation: Foret et al. 2021, arXiv:2010.01412.
Departures  a rule on losses has no gradients to combine twice: its weights, from the losses before the perturbation,
            multiply each task's g' everywhere. A zero gradient is not perturbed. The default radii are those common
            for sharpness-aware minimisation; which ones the paper has for each data set could not be checked.
Cost        2T backward passes and T forward passes more, of all tasks; 2T copies of the shared gradients.
"""

from collections.abc import Mapping
from typing import Annotated, Any

import torch
from jaxtyping import Float
from torch import Tensor

from polytask.balancing.accumulation import own
from polytask.balancing.engine import Combined
from polytask.balancing.partition import Partition
from polytask.balancing.session import Session
from polytask.core.constraints import Interval, RuleChoice
from polytask.core.rules import rule

Gradients = dict[str, Tensor]


@rule("sharpness_aware", source="arXiv:2211.13723", needs=("forward",), scale="own")
def sharpness_aware(
    session: Session,
    *,
    inner: Annotated[str | Mapping[str, Any], RuleChoice()] = "equal",
    radius: Annotated[float, Interval(0)] = 0.05,
    private_radius: Annotated[float, Interval(0)] = 0.05,
) -> Combined:
    """The combined low-loss gradient plus the combined flat gradient.

    Args:    session: the step.
             inner: the rule that combines the tasks' gradients, by name or {kind: name, and its parameters}; the two
                 parts keep a state each.
             radius: length of a task's perturbation of the shared parameters.
             private_radius: length of that of its own parameters.
    Returns: gradients, the weights of the low-loss part, and as `sharpness` how much the perturbation raises each loss.
    """
    part = session.partition()
    low: dict[str, Gradients] = {}
    perturbed: dict[str, Gradients] = {}
    raised = torch.zeros(len(session.tasks), dtype=torch.float64)
    for row, task in enumerate(session.tasks):
        what = f"task {task!r}"
        low[task] = session.gradient(session.step.losses.get(task), _reached(part, row), what)
    for row, task in enumerate(session.tasks):
        moved = _moved(part, low[task], radius, private_radius)
        found = session.losses(moved)
        raised[row] = found.values[row] - session.step.values[row]
        perturbed[task] = session.gradient(found.local.get(task), moved, f"task {task!r}, perturbed,")
    return _added(session, part, low, perturbed, raised)


def _reached(part: Partition, row: int) -> Gradients:
    """The parameters that a task reaches."""
    reaches = part.reaches[:, row].tolist()
    return {name: parameter for (name, parameter), here in zip(part.parameters.items(), reaches, strict=True) if here}


def _moved(part: Partition, grads: Gradients, radius: float, private_radius: float) -> Gradients:
    """Copies of the parameters, moved up a task's gradient."""
    shared = dict.fromkeys(part.shared)
    factors = {
        True: radius * _inverse(_norm([grad for name, grad in grads.items() if name in shared])),
        False: private_radius * _inverse(_norm([grad for name, grad in grads.items() if name not in shared])),
    }
    return {
        name: (part.parameters[name].detach() + grad * factors[name in shared]).requires_grad_()
        for name, grad in grads.items()
    }


def _norm(grads: list[Tensor]) -> float:
    return sum(float(grad.double().square().sum()) for grad in grads) ** 0.5


def _inverse(norm: float) -> float:
    return 1 / norm if norm > 0 else 0.0


def _added(
    session: Session,
    part: Partition,
    low: Mapping[str, Gradients],
    perturbed: Mapping[str, Gradients],
    raised: Float[Tensor, "T"],
) -> Combined:
    """What the inner rule makes of both parts."""
    ones = torch.ones(len(session.tasks), dtype=torch.float64)
    whole = session.vectors(perturbed, part)
    gram = None
    if session.inner("low loss").spec.weighs_losses:
        weights = {"all": session.weights("low loss")}
        combined, private = whole.combined(weights["all"]), weights["all"]
    else:
        base = session.vectors(low, part)
        combined, weights, gram = session.combined("low loss", base)
        for name, stack in whole.stacks.items():
            stack -= base.stacks[name]
        for name, grad in session.combined("flat", whole)[0].items():
            combined[name] = combined[name] + grad
        private = ones
    for name in part.private:
        grads = [weight * perturbed[t][name] for t, weight in _with(session.tasks, private) if name in perturbed[t]]
        combined[name] = own(sum(grads[1:], start=grads[0]))
    pairs = [(part.parameters[name], grad) for name, grad in combined.items()]
    return Combined(pairs, weights, {"all": "exact"}, part.shared, gram, measured={"sharpness": raised})


def _with(tasks: list[str], weights: Tensor) -> list[tuple[str, float]]:
    return list(zip(tasks, weights.tolist(), strict=True))
