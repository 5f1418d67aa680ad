"""The representation engine: the rule acts on gradients at what the tasks share, then one backward pass below it.

G is taken at the representation alone. By the chain rule it bounds G over the parameters below up to the trunk's
Jacobian, and costs each head's backward pass instead of T of the whole model's. Parameters above the representation
that several tasks reach (experts, say) are combined with the same weights, or by the same elementwise rule.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from polytask.balancing import distribution
from polytask.balancing.accumulation import as_sparse, infinite, usable_graph
from polytask.balancing.engine import Combined, Engine, Step, infinite_parameters
from polytask.balancing.exact import ExactEngine, dense, summed_gradients
from polytask.balancing.graph import walked
from polytask.balancing.group_rules import GroupRules
from polytask.balancing.partition import Partition, outside, reached_table, refuse_outside
from polytask.core.errors import BadValue, Inconsistent, MissingInput
from polytask.core.rules import RuleSpec
from polytask.core.task_vectors import TaskVectors


@dataclass(frozen=True)
class Cut:
    """The graph, cut at the representation.

    Attributes:
        above: who reaches what without passing the representation; with the representation's own tensors first, as
            if they were parameters.
        pieces: names of the representation's tensors.
        below: name -> parameter that the representation depends on.
    """

    above: Partition
    pieces: list[str]
    below: dict[str, Tensor]


class RepresentationEngine(Engine):
    """Weights, or the combined cotangent, from the gradients at `representation=`."""

    reads = "representation"

    def __init__(self) -> None:
        self._exact = ExactEngine()

    def check(self, spec: RuleSpec, groups: str, scale: str) -> None:
        if groups != "all":
            raise BadValue("groups", groups, "all: engine 'representation' sees the representation only")
        if scale == "unit":
            allowed = "published | sum | mean: engine 'representation' does not see the norm over the parameters"
            raise BadValue("scale", scale, allowed)

    def combine(self, step: Step, rules: GroupRules) -> Combined:
        if step.shared is not None:
            raise Inconsistent("shared= and engine 'representation': what lies below the representation is shared")
        cut = _cut(step)
        found = self._exact.gradients(step.losses, step.tasks, cut.above, step=step.number)
        gram = found.shared.gram(cut.pieces) / (step.factor or 1.0) ** 2
        private = found.private
        if distribution.active():
            gram = _over_processes(gram, found.shared, private, cut, step)
        bad = step.infinite_tasks(gram)
        bad += [f"task {cut.above.owner(name, step.tasks)!r}" for name in infinite(private)]
        overflow = step.overflows(bad)
        if overflow:  # as the exact engine
            combined, weights = found.shared.combined(torch.ones(len(step.tasks))), {}
        else:
            groups, grams = {"all": cut.above.shared}, {"all": gram}
            combined, weights = rules.combined(groups, grams, found.shared, step.values, step.priority)
        below = _through(cut, combined, step)
        overflow = step.overflows(infinite_parameters(below)) or overflow
        for name, rows in found.rows.items():
            combined[name] = as_sparse(combined[name], rows)
        heads = {name: grad for name, grad in combined.items() if name not in cut.pieces} | private
        grads = [(cut.below[name], grad) for name, grad in below.items()]
        grads += [(cut.above.parameters[name], grad) for name, grad in heads.items()]
        shared = [*below, *(name for name in cut.above.shared if name not in cut.pieces)]
        return Combined(grads, weights, {"all": "representation"}, shared, gram, overflow)


def _cut(step: Step) -> Cut:
    """MissingInput or Inconsistent where the representation does not separate heads from trunk."""
    tensors = {f"representation[{i}]": tensor for i, tensor in enumerate(step.representation or ())}
    for name, tensor in tensors.items():
        if not tensor.requires_grad:
            raise MissingInput(f"{name} depends on no parameter that is trained: there is nothing to balance")
    above = walked(step.losses, list(tensors.values()))
    heads, at_pieces = above.leaves, above.at_stops
    trunk: dict[Tensor, int] = {}
    for name, tensor in tensors.items():
        others = [other for other in tensors.values() if other is not tensor]
        below = walked({name: tensor}, others)
        if any(below.at_stops) or len(at_pieces) != len(tensors):
            raise Inconsistent(f"{name} depends on another part of the representation, or is given twice")
        trunk |= dict.fromkeys(below.leaves, 0)
    for bit, task in enumerate(step.losses):
        if not any(mask >> bit & 1 for mask in at_pieces):
            raise MissingInput(
                f"the loss of task {task!r} does not depend on the representation given: compute it from that tensor"
            )
    names = _names(step.named, [*trunk, *heads])
    both = next((names[leaf] for leaf in heads if leaf in trunk), None)
    if both is not None:
        raise Inconsistent(
            f"parameter {both!r} is reached through the representation and around it: use engine 'exact'"
        )
    return _partitioned(step, tensors, at_pieces, heads, {names[leaf]: leaf for leaf in trunk}, names)


def _names(named: Mapping[str, Tensor], leaves: Sequence[Tensor]) -> dict[Tensor, str]:
    """Leaf -> name; those outside the model are leaf.0, leaf.1, ..."""
    names = {parameter: name for name, parameter in named.items()}
    found = dict.fromkeys(leaves, 0)
    if distribution.active():
        refuse_outside(found, named)
    return names | {leaf: f"leaf.{i}" for i, leaf in enumerate(outside(found, named))}


def _partitioned(
    step: Step,
    tensors: Mapping[str, Tensor],
    at_pieces: Sequence[int],
    heads: Mapping[Tensor, int],
    trunk: Mapping[str, Tensor],
    names: Mapping[Tensor, str],
) -> Cut:
    """The tables of who reaches what, the same on every process but for the representation's own rows."""
    leaves = {names[leaf]: leaf for leaf in names if leaf.requires_grad}
    columns = [step.tasks.index(task) for task in step.losses]
    reaches = reached_table([heads.get(leaf, 0) for leaf in leaves.values()], columns, len(step.tasks))
    in_trunk = torch.tensor([name in trunk for name in leaves], dtype=torch.bool)
    if distribution.active():
        reaches, in_trunk = distribution.union(reaches), distribution.union(in_trunk)
    below = {name: leaf for (name, leaf), inside in zip(leaves.items(), in_trunk.tolist(), strict=True) if inside}
    least = min(2, len(step.tasks))
    shared = [name for name, count in zip(leaves, reaches.sum(1).tolist(), strict=True) if count >= least]
    table = torch.cat([reached_table(at_pieces, columns, len(step.tasks)), reaches])
    above = Partition({**tensors, **leaves}, table, [*tensors, *shared])
    return Cut(above, list(tensors), below)


def _over_processes(gram: Tensor, vectors: TaskVectors, private: dict[str, Tensor], cut: Cut, step: Step) -> Tensor:
    """G over the rows of all processes; gradients above the representation are summed in place."""
    for name in cut.above.private:
        private[name] = dense(private.get(name), cut.above.parameters[name])
    above = [stack for name, stack in vectors.stacks.items() if name not in cut.pieces]
    device = next(iter(step.named.values())).device
    moved = gram.to(device)
    distribution.sum_in_place([moved, *above, *(private[name] for name in cut.above.private)])
    return moved.cpu()


def _through(cut: Cut, combined: Mapping[str, Tensor], step: Step) -> dict[str, Tensor]:
    """name -> gradient of the parameters below, from one backward pass of the combined cotangents."""
    outputs = [cut.above.parameters[name] for name in cut.pieces]
    with usable_graph("the representation", step.number):
        return summed_gradients(outputs, [combined[name] for name in cut.pieces], cut.below)
