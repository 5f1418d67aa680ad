"""Network surgery: layers of tasks that have become alike are replaced by one layer of the group.

model = group_layers(model, inputs, level=0, threshold=0.9)     # between two phases of learning, level after level
"""

import copy
from collections.abc import Mapping
from itertools import combinations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from polytask.core.errors import BadValue
from polytask.sharing.layer_groups import LayerGroups, similarity
from polytask.sharing.layers import NamedModules
from polytask.sharing.model import MultiTaskModel


def group_layers(
    model: MultiTaskModel, inputs: Mapping[str, Tensor], *, level: int, threshold: float = 0.9
) -> MultiTaskModel:
    """A new model in which the groups of a level whose layers give alike outputs have one layer; `model` is unchanged.

    Outputs are alike where their linear CKA on these rows is at least `threshold`; the most alike pair is joined first,
    and a group is as alike to another as its least alike tasks are. The new layer is the one that imitates those that
    it replaces best on these rows, in least squares before the activation.

    Source: Gowda, Zonooz and Arani 2023, arXiv:2305.00441: similar layers hand their knowledge to a new group layer and
    are removed.
    Departures: the paper's text was not at hand: similarity, clustering and the closed form of the transfer are ours.
    Cost: a pass through the towers, T^2 / 2 similarities, and for each new layer a least-squares problem of (tasks x
    rows) equations.

    Args:
        model: one with sharing `layer_groups`.
        inputs: rows on which outputs are compared.
        level: counted from 0.

    Raises:
        BadValue: another architecture, or a level or threshold outside its range.
    """
    sharing, spec = model.sharing, model.spec
    if not isinstance(sharing, LayerGroups) or spec is None:
        found = type(sharing).__name__ if spec is None else spec.sharing.kind
        raise BadValue("the model's sharing", found, "layer_groups")
    levels = len(sharing.group_of)
    if not 0 <= level < levels:
        raise BadValue("level", level, f"0 to {levels - 1}")
    if not 0 <= threshold <= 1:
        raise BadValue("threshold", threshold, "a number in [0, 1]")
    was_training = model.training
    model.eval()
    with torch.no_grad():
        streams = sharing.streams(model.representation(inputs), model.tasks)
    model.train(was_training)
    members = _clusters(sharing.group_of[level], streams[level + 1], threshold)
    after = copy.deepcopy(model)
    changed = after.sharing
    assert isinstance(changed, LayerGroups)
    layers: NamedModules[nn.Linear] = NamedModules()
    before = list(sharing.levels)[level]
    for group, tasks in members.items():
        old = [before[sharing.group_of[level][task]] for task in tasks]
        kept = len({id(layer) for layer in old}) == 1
        reads = [streams[level][task] for task in tasks]
        layers[group] = copy.deepcopy(old[0]) if kept else _imitating(old, reads)
    changed.levels[level] = layers
    changed.group_of[level] = {task: group for group, tasks in members.items() for task in tasks}
    groups = tuple(_named(of) for of in changed.group_of)
    after.spec = spec.model_copy(update={"sharing": spec.sharing.model_copy(update={"groups": groups})})
    return after


def _clusters(of: Mapping[str, str], outputs: Mapping[str, Tensor], threshold: float) -> dict[str, list[str]]:
    """group -> tasks, after joining groups that are alike enough; a joined group is named after its tasks."""
    groups: dict[str, list[str]] = {}
    for task, group in of.items():
        groups.setdefault(group, []).append(task)
    alike = {(a, b): similarity(outputs[a], outputs[b]) for a, b in combinations(outputs, 2)}
    alike |= {(b, a): value for (a, b), value in alike.items()}

    def least(pair: tuple[str, str]) -> float:
        return min(alike[a, b] for a in groups[pair[0]] for b in groups[pair[1]])

    while len(groups) > 1:
        best = max(combinations(groups, 2), key=least)
        if least(best) < threshold:
            break
        joined = [task for task in of if task in groups[best[0]] or task in groups[best[1]]]
        for group in best:
            del groups[group]
        groups["+".join(joined)] = joined
    return groups


def _imitating(layers: list[nn.Linear], reads: list[Float[Tensor, "B d"]]) -> nn.Linear:
    """The linear layer that is nearest to all of these on what each reads."""
    rows = torch.cat([torch.cat([x, x.new_ones(len(x), 1)], dim=1) for x in reads]).double()
    wanted = torch.cat([layer(x).detach() for layer, x in zip(layers, reads, strict=True)]).double()
    mean = torch.stack([torch.cat([layer.weight, layer.bias[:, None]], dim=1).detach() for layer in layers]).mean(0)
    # From the mean of the weights: what the rows do not say stays as it is there.
    change = torch.linalg.lstsq(rows, wanted - rows @ mean.double().mT, driver="gelsd").solution
    found = mean + change.mT.to(mean.dtype)
    made = copy.deepcopy(layers[0])
    with torch.no_grad():
        made.weight.copy_(found[:, :-1])
        made.bias.copy_(found[:, -1])
    return made


def _named(of: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """name -> tasks, without those that are alone under their own name."""
    groups: dict[str, list[str]] = {}
    for task, group in of.items():
        groups.setdefault(group, []).append(task)
    return {group: tuple(tasks) for group, tasks in groups.items() if tasks != [group]}
