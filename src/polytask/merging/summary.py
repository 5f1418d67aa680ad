"""How much the tasks of a merge interfere: cosines and sign conflicts of their vectors, by layer and over the model."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any

from polytask.merging.layers import OUTSIDE, first_fitting, place_of
from polytask.merging.outcome import MergeReport, TensorReport

FILE = "interference.json"


def interference(report: MergeReport, tasks: Sequence[str]) -> dict[str, Any]:
    """What stands in interference.json: the whole model, then its layers in the order of the model.

    Cosines are exact: inner products and squared lengths add up over tensors. A layer's share of conflicting signs is
    the mean of its tensors' shares, weighted by their elements. `kept` holds the shares of elements that the transforms
    of both tasks keep, on the diagonal those of one task; it is empty where the plan has no transforms.
    """
    merged = [tensor for tensor in report.tensors if not tensor.taken]
    layers: dict[str, list[TensorReport]] = {}
    for tensor in merged:
        layers.setdefault(tensor.group, []).append(tensor)
    return {
        "version": 1,
        "kind": "merge",
        "tasks": list(tasks),
        "whole": _summed(merged, tasks),
        "layers": [{"layer": name, **_summed(layers[name], tasks)} for name in _in_order(layers)],
        "weights": _weights(merged),
        "taken": [tensor.name for tensor in report.tensors if tensor.taken],
    }


def _in_order(layers: Mapping[str, Sequence[TensorReport]]) -> list[str]:
    """What comes before the numbered layers, these by number, and what comes after."""

    def position(layer: str) -> tuple[int, str, int]:
        place = place_of(layer)
        if place is not None:
            return 1, place.stack, place.number
        return (0 if first_fitting(layers[layer][0].name, OUTSIDE) == 0.0 else 2), layer, 0

    return sorted(layers, key=position)


def _weights(tensors: Sequence[TensorReport]) -> dict[str, dict[str, float]]:
    """tensor -> the weights that a rule on Gram matrices chose; under "all" where all have the same."""
    found = {tensor.name: tensor.weights for tensor in tensors if tensor.weights}
    first = next(iter(found.values()), {})
    return {"all": first} if first and all(weights == first for weights in found.values()) else found


@dataclass
class _Pair:
    product: float = 0.0
    conflicting: float = 0.0
    compared: int = 0


def _summed(tensors: Iterable[TensorReport], tasks: Sequence[str]) -> dict[str, Any]:
    squares = dict.fromkeys(tasks, 0.0)
    pairs = {(a, b): _Pair() for a in tasks for b in tasks}
    kept = dict.fromkeys(pairs, 0.0)
    elements, transformed, merged, base = 0, 0, 0.0, 0.0
    for tensor in tensors:
        elements += tensor.elements
        transformed += tensor.elements if tensor.kept else 0
        merged += tensor.merged_norm**2
        base += (tensor.base_norm or 0.0) ** 2
        for i, first in enumerate(tensor.tasks):
            squares[first] += tensor.norms[i] ** 2
            for j, second in enumerate(tensor.tasks):
                _add(pairs[first, second], tensor, i, j)
                kept[first, second] += tensor.kept[i][j] * tensor.elements if tensor.kept else 0.0
    lengths = {task: sqrt(square) for task, square in squares.items()}
    return {
        "elements": elements,
        "norms": [lengths[task] for task in tasks],
        "merged_norm": sqrt(merged),
        "base_norm": sqrt(base),
        "cosines": [[_ratio(pairs[a, b].product, lengths[a] * lengths[b]) for b in tasks] for a in tasks],
        "conflicts": [[_ratio(pairs[a, b].conflicting, pairs[a, b].compared) for b in tasks] for a in tasks],
        "kept": [[kept[a, b] / transformed for b in tasks] for a in tasks] if transformed else [],
    }


def _add(pair: _Pair, tensor: TensorReport, i: int, j: int) -> None:
    cosine, conflict = tensor.cosines[i][j], tensor.conflicts[i][j]
    if cosine is not None:
        pair.product += cosine * tensor.norms[i] * tensor.norms[j]
    if conflict is not None:
        pair.conflicting += conflict * tensor.elements
        pair.compared += tensor.elements


def _ratio(value: float, over: float) -> float | None:
    return value / over if over > 0 else None
