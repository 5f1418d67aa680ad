"""Gradients of weighted losses in one backward pass, private parameters keeping their own task's, as if it were T."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from polytask.balancing.accumulation import collected_grads, usable_graph
from polytask.balancing.engine import Combined, Step, infinite_parameters
from polytask.balancing.exact import summed_grads
from polytask.balancing.partition import Partition, partition

_DIVISIBLE = (1e-3, 1e3)  # weights that can be divided out of a gradient of any precision without loss


def weighted_gradients(step: Step, weights: Tensor, route: str) -> Combined:
    """What the exact engine would write if the rule gave these weights; G is not formed."""
    part = partition(step.losses, step.tasks, step.named, step.shared)
    return weighted_in_parts([step.losses], step, part, weights, route)


def weighted_in_parts(
    parts: Iterable[Mapping[str, Tensor]], step: Step, part: Partition, weights: Tensor, route: str
) -> Combined:
    """The same, the step's losses being the sums of those of the parts, each of which is asked for when it is its turn.

    A private parameter's gradient comes out of the pass times its task's weight, which is divided out again. Where
    that weight is 0 or nearly, the head is differentiated once more, by itself.
    """
    alone, factors = _factors(part, weights)
    used = part.reaches.any(1).tolist()
    leaves = {name: leaf for (name, leaf), anyone in zip(part.parameters.items(), used, strict=True) if anyone}
    apart = [leaves[name] for name in alone]
    together = [leaf for name, leaf in leaves.items() if name not in alone]
    share = dict(zip(step.tasks, weights.tolist(), strict=True))
    with usable_graph(f"tasks {', '.join(step.tasks)}", step.number), collected_grads(leaves) as found:
        for losses in parts:
            outputs = list(losses.values())
            if outputs and apart:
                ones = [torch.ones_like(loss) for loss in outputs]
                torch.autograd.backward(outputs, ones, retain_graph=True, inputs=apart)
            if outputs and together:
                cotangents = [torch.full_like(loss, share[task]) for task, loss in losses.items()]
                torch.autograd.backward(outputs, cotangents, inputs=together)
    grads = summed_grads(found, leaves)
    for name, factor in factors.items():
        if name in grads:
            grads[name] = grads[name] / factor
    overflow = step.overflows(infinite_parameters(grads))
    pairs = [(part.parameters[name], grad) for name, grad in grads.items()]
    return Combined(pairs, {} if overflow else {"all": weights}, {"all": route}, part.shared, skipped=overflow)


def _factors(part: Partition, weights: Tensor) -> tuple[list[str], dict[str, float]]:
    """(private parameters that need a pass of their own, private parameter -> its task's weight for the others)."""
    low, high = _DIVISIBLE
    reaching = dict(zip(part.parameters, part.reaches.tolist(), strict=True))
    alone, factors = [], {}
    for name in part.private:
        weight = float(weights[reaching[name].index(True)])
        if sum(reaching[name]) == 1 and low <= abs(weight) <= high:
            factors[name] = weight
        else:
            alone.append(name)
    return alone, factors
