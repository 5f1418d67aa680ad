"""The layerwise engine: G from layers' inputs and the gradients of their outputs; no weight's gradient a task.

Each task's backward pass stops short of the weights: what it gives at a layer's output is enough for inner products
(see `layer_gradients`) and for the weighted sum of the tasks' gradients, which is formed once. A module whose gradient
is no such product, or where that would not pay, takes the exact route by itself. The report names the route of each.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from polytask.balancing import distribution
from polytask.balancing.accumulation import as_sparse, infinite, usable_graph
from polytask.balancing.engine import Combined, Engine, Step, reads_gradients, summed_gram
from polytask.balancing.exact import ExactEngine, TaskGradients
from polytask.balancing.graph import Walk, walked
from polytask.balancing.group_rules import GroupRules
from polytask.balancing.layer_gradients import EmbeddingGradients, LayerGradients, ProductGradients
from polytask.balancing.layers import Layer, found_layers
from polytask.balancing.partition import Partition, partition
from polytask.balancing.routes import FEWER_ROWS, Criterion
from polytask.core.rules import RuleSpec


class LayerwiseEngine(Engine):
    """Inner products wherever a layer has fewer rows than fan-in."""

    def __init__(self) -> None:
        self._exact = ExactEngine()

    def combine(self, step: Step, rules: GroupRules) -> Combined:
        return combined_by_layer(step, rules, self._exact, FEWER_ROWS)


def why_exact(spec: RuleSpec) -> str | None:
    """Why each task's gradients must be formed, if so; the same on every process."""
    if reads_gradients(spec):
        return "the rule reads the gradients themselves"
    return "processes hold different rows" if distribution.active() else None


def combined_by_layer(step: Step, rules: GroupRules, exact: ExactEngine, criterion: Criterion) -> Combined:
    """What the exact engine gives; the layers for which it pays by inner products."""
    why = why_exact(rules.spec)
    if why is not None:
        result = exact.combine(step, rules)
        return replace(result, route=dict.fromkeys(result.route, f"exact: {why}"))
    walk = walked(step.losses)
    part = partition(step.losses, step.tasks, step.named, step.shared, walk.leaves)
    seen = measured(step, rules, exact, criterion, part, walk)
    found, groups, grams = seen.found, seen.groups, seen.grams
    total = summed_gram(grams)
    bad = step.infinite_tasks(total) + [f"task {part.owner(name, step.tasks)!r}" for name in infinite(found.private)]
    overflow = step.overflows(bad)
    if overflow:  # as the exact engine
        weights = dict.fromkeys(groups, torch.ones(len(step.tasks), dtype=torch.float64))
    else:
        weights = {
            group: rules.weights(group, step.tasks, {"losses": step.values, "gram": gram}, step.priority)
            for group, gram in grams.items()
        }
    combined = _combined(groups, weights, found, seen.layers)
    grads = [(part.parameters[name], grad) for name, grad in [*combined.items(), *found.private.items()]]
    return Combined(grads, {} if overflow else weights, seen.routes, part.shared, total, overflow)


@dataclass(frozen=True)
class Measured:
    """What one backward pass a task gives, with the Gram matrix of each group.

    Attributes:
        found: the gradients that were formed.
        layers: those whose were not.
        groups: group -> its parameters.
        grams: group -> float64 [T, T].
        routes: module -> its route.
    """

    found: TaskGradients
    layers: list[LayerGradients]
    groups: dict[str, list[str]]
    grams: dict[str, Tensor]
    routes: dict[str, str]


def measured(
    step: Step, rules: GroupRules, exact: ExactEngine, criterion: Criterion, part: Partition, walk: Walk
) -> Measured:
    """Of the step's losses on this process, for the parameters that `part` says are reached."""
    with usable_graph(f"task {step.tasks[0]!r}", step.number):
        chosen = _chosen(walk, {name: part.parameters[name] for name in part.shared}, len(step.tasks), criterion)
        layers = [_gradients_of(layer, part, step, exact) for layer in chosen.layers]
    found = exact.gradients(step.losses, step.tasks, part, step=step.number, layers=layers)
    groups = rules.grouped(part.shared)
    grams = _grams(groups, found, layers, step)
    return Measured(found, layers, groups, grams, _by_module(part.shared, chosen.routes))


@dataclass(frozen=True)
class _Chosen:
    """The layers that are taken by inner products; parameter -> its route."""

    layers: list[Layer]
    routes: dict[str, str]


def _chosen(walk: Walk, shared: Mapping[str, Tensor], tasks: int, criterion: Criterion) -> _Chosen:
    routes = dict.fromkeys(shared, "exact")
    if not any(criterion.may_pay(parameter.shape, tasks) for parameter in shared.values()):
        return _Chosen([], routes)
    chosen = []
    for layer in found_layers(walk, shared):
        route = f"exact: {layer.rows} rows, fan-in {layer.fan_in}"
        if criterion.pays(layer, tasks):
            packed = any(use.is_packed for use in layer.uses)  # to read its inputs would compute them anew
            route = "exact: activations are checkpointed" if packed else "layerwise"
            chosen += [] if packed else [layer]
        routes |= dict.fromkeys(layer.names, route)
    return _Chosen(chosen, routes)


def _gradients_of(layer: Layer, part: Partition, step: Step, exact: ExactEngine) -> LayerGradients:
    kind = EmbeddingGradients if layer.kind == "embedding" else ProductGradients
    return kind(layer, [part.parameters[name] for name in layer.names], len(step.tasks), exact.buffer)


def _grams(
    groups: Mapping[str, Sequence[str]], found: TaskGradients, layers: Sequence[LayerGradients], step: Step
) -> dict[str, Tensor]:
    """Group -> its Gram matrix."""
    group_of = {name: group for group, names in groups.items() for name in names}
    grams = {
        group: found.shared.gram([name for name in names if name in found.shared.stacks])
        for group, names in groups.items()
    }
    for layer in layers:
        one_group = len({group_of[name] for name in layer.layer.names}) == 1
        for name, gram in layer.grams(together=one_group).items():
            grams[group_of[name]] += gram
    return {group: gram / (step.factor or 1.0) ** 2 for group, gram in grams.items()}


def _combined(
    groups: Mapping[str, Sequence[str]],
    weights: Mapping[str, Tensor],
    found: TaskGradients,
    layers: Sequence[LayerGradients],
) -> dict[str, Tensor]:
    """Name -> the weighted sum of the tasks' gradients."""
    combined: dict[str, Tensor] = {}
    for group, names in groups.items():
        combined |= found.shared.combined(weights[group], [name for name in names if name in found.shared.stacks])
    for name, rows in found.rows.items():
        combined[name] = as_sparse(combined[name], rows)
    group_of = {name: group for group, names in groups.items() for name in names}
    for layer in layers:
        names = layer.layer.names
        for group in dict.fromkeys(group_of[name] for name in names):
            combined |= layer.combined(weights[group], [name for name in names if group_of[name] == group])
    return combined


def _by_module(shared: Sequence[str], route: Mapping[str, str]) -> dict[str, str]:
    """Module -> its route; by parameter where a module has several."""
    modules: dict[str, list[str]] = {}
    for name in shared:
        modules.setdefault(name.rpartition(".")[0] or name, []).append(name)
    routes: dict[str, str] = {}
    for module, names in modules.items():
        same = all(route[name] == route[names[0]] for name in names)
        routes |= {module: route[names[0]]} if same else {name: route[name] for name in names}
    return routes
