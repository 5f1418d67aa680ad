"""A step's batch in parts that are computed again: the memory of one gradient, however many tasks there are.

The first pass takes the losses and G over all parts, the second the gradient of the weighted losses. G is that of the
whole batch, up to rounding: row i needs task i's gradient, summed over the parts, and how fast every later task's loss
changes in its direction, which forward-mode differentiation gives for all of them at once. With `micro_mean` it is the
mean over the parts of each part's own Gram matrix instead, an approximation: its diagonal counts each part's noise, and
of the products between two parts it knows nothing.

Time, in passes of all parts: forward and backward once for each task, forward-mode once for each but the last; for
`micro_mean` one backward pass a task by the route of engine "auto", with that engine's memory on one part; then forward
and backward once more. A rule on losses needs no G and takes a forward and a weighted pass.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from polytask.balancing import distribution
from polytask.balancing.accumulation import collected_grads, usable_graph
from polytask.balancing.engine import Combined, Step, summed_gram
from polytask.balancing.exact import ExactEngine, summed_grads
from polytask.balancing.graph import reached, walked
from polytask.balancing.group_rules import GroupRules
from polytask.balancing.layerwise import measured
from polytask.balancing.partition import Partition, reached_table, refuse_outside, sorted_out
from polytask.balancing.routes import LESS_WORK
from polytask.balancing.step_losses import StepLosses, check_losses
from polytask.balancing.weighted import weighted_in_parts
from polytask.core.errors import Inconsistent, UnknownName

# (parameters, part) -> (task -> loss, task -> labels behind it)
Compute = Callable[[Mapping[str, Tensor] | None, int], tuple[Mapping[str, Tensor], Mapping[str, float] | None]]

_SAME = 1e-3  # by how much a loss that is computed again may differ, relative to its size


@dataclass(frozen=True)
class Parts:
    """This process's parts of a step.

    Attributes:
        compute: gives a part's losses, means over its labels, at any parameters.
        tasks: those of the step.
        values: of the first pass, float64 [parts, T].
        shares: of all labels of all parts and processes, float64 [parts, T]; 0 where a part has none.
        reaches: parameter -> whether each task reaches it in any part, bool [T].
    """

    compute: Compute
    tasks: list[str]
    values: Float[Tensor, "parts T"]
    shares: Float[Tensor, "parts T"]
    reaches: dict[str, Tensor]

    def losses(self, place: int, parameters: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Task -> what the part adds to its loss.

        Raises: Inconsistent if the loss is another one than before, as it is where dropout draws anew.
        """
        (given, _), found = self.compute(parameters, place), {}
        for column, task in enumerate(self.tasks):
            share, before = float(self.shares[place, column]), float(self.values[place, column])
            if share == 0:
                continue
            if task not in given:
                raise Inconsistent(f"forward= gives no loss of task {task!r} for part {place}, as it did before")
            now = float(given[task].detach())
            if abs(now - before) > _SAME * max(abs(now), abs(before)):
                raise Inconsistent(
                    f"forward= gives {now:.6g} for task {task!r} in part {place}, and {before:.6g} before: "
                    "each pass of a part must draw the same dropout and change nothing"
                )
            found[task] = given[task] * share
        return found

    def every(self, factor: float = 1.0) -> Iterator[dict[str, Tensor]]:
        """The losses of one part after the other, times a GradScaler's factor."""
        for place in range(len(self.shares)):
            yield {task: loss * factor for task, loss in self.losses(place).items()}


def first_pass(
    compute: Compute,
    number: int,
    tasks: Sequence[str],
    named: Mapping[str, Tensor],
    *,
    differentiable: bool,
) -> tuple[StepLosses, Parts]:
    """(the losses over all parts and processes, the parts); looks at who reaches what where gradients are wanted."""
    trainable = {name: parameter for name, parameter in named.items() if parameter.requires_grad}
    values, labels = torch.zeros(2, number, len(tasks), dtype=torch.float64)
    reaches = torch.full((len(trainable), len(tasks)), not differentiable)
    for place in range(number):
        with torch.set_grad_enabled(differentiable):
            losses, given = compute(None, place)
        count = dict.fromkeys(losses, 1.0) if given is None else given
        check_losses(losses, count)
        for task in losses:
            if task not in tasks:
                raise UnknownName("task", task, tasks, f"forward= of part {place}")
        present = {task: loss for task, loss in losses.items() if count[task] > 0}
        columns = [tasks.index(task) for task in present]
        for column, (task, loss) in zip(columns, present.items(), strict=True):
            values[place, column], labels[place, column] = float(loss.detach()), float(count[task])
        if differentiable and present:
            masks = reached(present)
            refuse_outside(masks, trainable)
            reaches |= reached_table([masks.get(leaf, 0) for leaf in trainable.values()], columns, len(tasks))
    device = next(iter(named.values())).device
    total = torch.stack([(values * labels).sum(0), labels.sum(0)]).to(device)
    if distribution.active():
        distribution.sum_in_place([total])
        reaches = distribution.union(reaches)
    sums, everyone = total.cpu()
    here = [column for column in range(len(tasks)) if float(everyone[column]) > 0]
    present_tasks = [tasks[column] for column in here]
    found = StepLosses(present_tasks, sums[here] / everyone[here], {}, everyone[here])
    rows = dict(zip(trainable, reaches[:, here], strict=True))
    return found, Parts(compute, present_tasks, values[:, here], labels[:, here] / everyone[here], rows)


def combined_again(step: Step, parts: Parts, rules: GroupRules, gram: str) -> Combined:
    """What the rules make of the whole batch: weights from the first pass, and the second."""
    part = _partition(step, parts, rules)
    route = f"{gram} in {len(parts.shares)} parts"
    second = parts.every(step.factor or 1.0)
    if rules.spec.weighs_losses:
        weights = rules.weights("all", step.tasks, {"losses": step.values, **step.more}, step.priority)
        return replace(weighted_in_parts(second, step, part, weights, route), route={}, shared=[])
    found = _mean_gram(step, parts, part, rules) if gram == "micro_mean" else _gram(step, parts, part)
    if step.overflows(step.infinite_tasks(found)):  # infinities stay where the scaler looks for them
        ones = torch.ones(len(step.tasks), dtype=torch.float64)
        return replace(weighted_in_parts(second, step, part, ones, route), weights={}, gram=found, skipped=True)
    weights = rules.weights("all", step.tasks, {"losses": step.values, "gram": found}, step.priority)
    return replace(weighted_in_parts(second, step, part, weights, route), gram=found)


def _partition(step: Step, parts: Parts, rules: GroupRules) -> Partition:
    """Who reaches what in any part; for a rule on losses, which looks at no graph, everything."""
    parameters = step.trainable
    reaches = torch.stack([parts.reaches[name] for name in parameters])
    return sorted_out(parameters, reaches, step.tasks, step.shared, weighs_losses=rules.spec.weighs_losses)


def _gram(step: Step, parts: Parts, part: Partition) -> Tensor:
    """G of the whole batch; the gradient of one task at a time is held."""
    leaves = {name: part.parameters[name] for name in part.shared}
    gram = torch.zeros(len(step.tasks), len(step.tasks), dtype=torch.float64)
    with sdpa_kernel(SDPBackend.MATH):  # the one kernel of attention that has a forward mode, in all passes alike
        for row, task in enumerate(step.tasks):
            grads = _gradient(step, parts, leaves, task)
            lengths = [grad.double().square().sum() for grad in grads.values()]
            gram[row, row] = torch.stack(lengths).sum() if lengths else 0.0
            if not gram[row, row].isfinite() or row + 1 == len(step.tasks):
                continue
            gram[row, row + 1 :] = _slopes(parts, leaves, grads)[row + 1 :]
    return gram + gram.triu(1).T


def _gradient(step: Step, parts: Parts, leaves: Mapping[str, Tensor], task: str) -> dict[str, Tensor]:
    """A task's gradient of the shared parameters, over all parts and processes, without a GradScaler's factor."""
    factor = step.factor or 1.0
    with usable_graph(f"task {task!r}", step.number), collected_grads(leaves) as found:
        for losses in parts.every(factor):
            if task in losses:
                losses[task].backward(inputs=list(leaves.values()))
    return {name: grad.to_dense() / factor for name, grad in summed_grads(found, leaves).items()}


@cache
def _load_forward_mode() -> None:
    """torch compiles some derivatives on first use, and warns of its own way to do so, which no caller can heed."""
    with warnings.catch_warnings(), forward_ad.dual_level():
        warnings.simplefilter("ignore", DeprecationWarning)
        forward_ad.make_dual(torch.zeros(1), torch.zeros(1))


def _slopes(parts: Parts, leaves: Mapping[str, Tensor], grads: Mapping[str, Tensor]) -> Float[Tensor, "T"]:
    """How fast each task's loss rises in the direction of these gradients, over all parts and processes."""
    largest = max((float(grad.abs().max()) for grad in grads.values()), default=0.0)
    slopes = torch.zeros(len(parts.tasks), dtype=torch.float64)
    if largest == 0:
        return slopes
    _load_forward_mode()
    for place in range(len(parts.shares)):
        with torch.no_grad(), forward_ad.dual_level():
            moved = {  # the largest step is 1, so that half precision neither overflows nor vanishes
                name: forward_ad.make_dual(leaves[name].detach(), grad / largest) for name, grad in grads.items()
            }
            for task, loss in _forward_mode(parts, place, moved).items():
                tangent = forward_ad.unpack_dual(loss).tangent
                if tangent is not None:
                    slopes[parts.tasks.index(task)] += float(tangent) * largest
    if distribution.active():
        moved_there = slopes.to(next(iter(leaves.values())).device)
        distribution.sum_in_place([moved_there])
        slopes = moved_there.cpu()
    return slopes


def _forward_mode(parts: Parts, place: int, moved: Mapping[str, Tensor]) -> dict[str, Tensor]:
    try:
        return parts.losses(place, moved)
    except RuntimeError as error:  # a NotImplementedError is one
        if "forward" not in str(error).lower():
            raise
        raise Inconsistent(
            "gram 'recomputed' needs every operation's forward-mode derivative, which one lacks: use 'kept' or "
            f"'micro_mean' ({str(error).splitlines()[0]})"
        ) from error


def _mean_gram(step: Step, parts: Parts, part: Partition, rules: GroupRules) -> Tensor:
    """The mean of the parts' Gram matrices, a part being taken for the whole: its task's share counts that often."""
    total = torch.zeros(len(step.tasks), len(step.tasks), dtype=torch.float64)
    exact = ExactEngine()
    for losses in parts.every(step.factor or 1.0):
        if losses:
            here = replace(step, tasks=list(losses), losses=losses, shared=part.shared)
            walk = walked(losses)
            own = Partition(part.parameters, _rows(part, walk.leaves, len(losses)), part.shared)
            index = torch.tensor([step.tasks.index(task) for task in losses])
            seen = measured(here, rules, exact, LESS_WORK, own.shared_only(), walk)
            total[index[:, None], index] += summed_gram(seen.grams)
    number = float(len(parts.shares))
    if distribution.active():
        device = next(iter(step.named.values())).device
        moved = torch.cat([total.flatten(), total.new_tensor([number])]).to(device)
        distribution.sum_in_place([moved])
        total, number = moved[:-1].cpu().view_as(total), float(moved[-1])
    return total * number  # each part's gradients are its share; times `number` they are the batch's, if all are alike


def _rows(part: Partition, leaves: Mapping[Tensor, int], tasks: int) -> Tensor:
    return reached_table([leaves.get(leaf, 0) for leaf in part.parameters.values()], range(tasks), tasks)
