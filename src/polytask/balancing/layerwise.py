"""The layerwise engine: G from layers' inputs and the gradients of their outputs; no weight's gradient a task.

Each task's backward pass stops short of the weights: what it gives at a layer's output is enough for inner products
(see `layer_gradients`) and for the weighted sum of the tasks' gradients, which is formed once. A module whose gradient
is no such product, or where that would not pay, takes the exact route by itself. The report names the route of each.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from polytask.balancing import distribution
from polytask.balancing.accumulation import as_sparse, infinite
from polytask.balancing.engine import Combined, Engine, Step, summed_gram
from polytask.balancing.exact import ExactEngine, TaskGradients
from polytask.balancing.graph import walked
from polytask.balancing.group_rules import GroupRules
from polytask.balancing.layer_gradients import EmbeddingGradients, LayerGradients, ProductGradients
from polytask.balancing.layers import Layer, found_layers
from polytask.balancing.partition import Partition, partition

_MOVED = 36  # multiplications in whose time one number is read or written


class LayerwiseEngine(Engine):
    """Inner products wherever a layer has fewer rows than fan-in."""

    def __init__(self) -> None:
        self._exact = ExactEngine()

    def combine(self, step: Step, rules: GroupRules) -> Combined:
        return combined_by_layer(step, rules, self._exact, fewer_rows)


class AutoEngine(Engine):
    """Inner products for the layers in which they take less work, as far as their shapes tell."""

    def __init__(self) -> None:
        self._exact = ExactEngine()

    def combine(self, step: Step, rules: GroupRules) -> Combined:
        return combined_by_layer(step, rules, self._exact, less_work)


def fewer_rows(layer: Layer, tasks: int) -> bool:
    return layer.rows < layer.fan_in


def less_work(layer: Layer, tasks: int) -> bool:
    """Compares multiplications and numbers moved, from shapes alone.

    Exact: each task's gradient, the Gram matrix of these; a gradient is written, copied and read twice. By layer: half
    of X X^T and of its product with each task's D, the Gram matrix of these, one weight gradient; D is copied and read
    four times.
    """
    rows, fan_in, outputs = layer.rows, layer.fan_in, layer.outputs
    if layer.kind == "embedding":
        return rows < fan_in
    exact = tasks * fan_in * outputs * (rows + tasks + 5 * _MOVED)
    triangle = rows * (rows + 64) // 2
    products = triangle * (fan_in + tasks * outputs) + tasks * rows * outputs * (tasks + 7 * _MOVED)
    patches = 4 * _MOVED * rows * fan_in if layer.kind == "convolution" else 0
    return products + rows * fan_in * outputs + patches < exact


def combined_by_layer(
    step: Step, rules: GroupRules, exact: ExactEngine, pays: Callable[[Layer, int], bool]
) -> Combined:
    """What the exact engine gives; the layers for which it `pays` by inner products."""
    reads = rules.spec.returns != "weights" or rules.spec.tracker is not None
    if reads or distribution.active():
        why = "the rule reads the gradients themselves" if reads else "processes hold different rows"
        result = exact.combine(step, rules)
        return replace(result, route=dict.fromkeys(result.route, f"exact: {why}"))
    seen = measured(step, rules, exact, pays)
    part, found, groups, grams = seen.part, seen.found, seen.groups, seen.grams
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
        part: who reaches what.
        found: the gradients that were formed.
        layers: those whose were not.
        groups: group -> its parameters.
        grams: group -> float64 [T, T].
        routes: module -> its route.
    """

    part: Partition
    found: TaskGradients
    layers: list[LayerGradients]
    groups: dict[str, list[str]]
    grams: dict[str, Tensor]
    routes: dict[str, str]


def measured(
    step: Step, rules: GroupRules, exact: ExactEngine, pays: Callable[[Layer, int], bool], *, private: bool = True
) -> Measured:
    """Of the step's losses on this process; private parameters get no gradient where that is not wanted."""
    walk = walked(step.losses)
    part = partition(step.losses, step.tasks, step.named, step.shared, walk.leaves)
    if not private:
        part = part.shared_only()
    every = found_layers(walk, {name: part.parameters[name] for name in part.shared})
    layers = [_gradients_of(layer, part, step, exact) for layer in every if pays(layer, len(step.tasks))]
    found = exact.gradients(step.losses, step.tasks, part, step=step.number, layers=layers)
    groups = rules.grouped(part.shared)
    grams = _grams(groups, found, layers, step)
    return Measured(part, found, layers, groups, grams, _routes(part.shared, every, layers))


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


def _routes(shared: Sequence[str], every: Sequence[Layer], layers: Sequence[LayerGradients]) -> dict[str, str]:
    """Module -> its route; by parameter where a module has several."""
    route = dict.fromkeys(shared, "exact")
    for layer in every:
        route |= dict.fromkeys(layer.names, f"exact: {layer.rows} rows, fan-in {layer.fan_in}")
    for layer in layers:
        route |= dict.fromkeys(layer.layer.names, "layerwise")
    modules: dict[str, list[str]] = {}
    for name in shared:
        modules.setdefault(name.rpartition(".")[0] or name, []).append(name)
    routes: dict[str, str] = {}
    for module, names in modules.items():
        same = all(route[name] == route[names[0]] for name in names)
        routes |= {module: route[names[0]]} if same else {name: route[name] for name in names}
    return routes
