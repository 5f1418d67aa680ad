"""The prompted graph, written out: one graph a row, node by node and edge by edge, through one relational network."""

from collections.abc import Callable

import torch
from torch import Tensor

Tensors = dict[str, Tensor]


def normalised(tensors: Tensors, name: str, x: Tensor) -> Tensor:
    centred = x - x.mean()
    return centred / (centred.square().mean() + 1e-5).sqrt() * tensors[f"{name}.weight"] + tensors[f"{name}.bias"]


def one_for_all_reference(tensors: Tensors, inputs: Tensors, task: str) -> Tensor:
    """Two layers of the encoder and two more; every node of the prompted graph goes through all that reach it."""
    rows = [prompted(tensors, {key: values[row] for key, values in inputs.items()}, task) for row in range(9)]
    scores = torch.stack(rows)
    return scores[:, 0] if scores.shape[1] == 1 else scores


def prompted(tensors: Tensors, graph: Tensors, task: str) -> Tensor:
    """The scores of one row's class nodes."""
    nodes = [
        tensors["sharing.encoder.embedding.weight"] @ node + tensors["sharing.encoder.embedding.bias"]
        for node, there in zip(graph["nodes"], graph["node_mask"], strict=True)
        if there
    ]
    states = {f"node {number}": state for number, state in enumerate(nodes, 1)}
    states |= {"prompt": tensors[f"sharing.prompts.{task}.task"]}
    states |= {f"class {number}": state for number, state in enumerate(tensors[f"sharing.prompts.{task}.classes"])}
    of_interest = [f"node {number}" for number, chosen in enumerate(graph["interest"], 1) if chosen]
    for layer in range(4):
        inner = f"sharing.encoder.layers.{layer}" if layer < 2 else None
        at = f"{inner}.update" if inner else f"sharing.layers.{layer - 2}"
        read = {name: torch.zeros_like(state) for name, state in states.items()}
        if inner is not None:
            for (one, other), features in zip(graph["edges"], graph["edge_features"], strict=True):
                if one > 0:
                    message = (states[f"node {one}"] + tensors[f"{inner}.edges.weight"] @ features).clamp(min=0)
                    read[f"node {other}"] += tensors[f"{inner}.neighbours.weight"] @ message
        if layer < 3:
            for name in of_interest:
                read["prompt"] += along(tensors, f"sharing.to_prompt.{layer}", states[name]) / len(of_interest)
        for name in states:
            if name.startswith("class"):
                read[name] += along(tensors, f"sharing.to_class.{layer}", states["prompt"])
        states = {
            name: normalised(
                tensors, f"{at}.norm", tensors[f"{at}.own.weight"] @ state + tensors[f"{at}.own.bias"] + read[name]
            ).clamp(min=0)
            for name, state in states.items()
        }
    return torch.stack([readout(tensors, state) for name, state in states.items() if name.startswith("class")])


def along(tensors: Tensors, relation: str, state: Tensor) -> Tensor:
    return tensors[f"{relation}.matrix.weight"] @ (state + tensors[f"{relation}.edge"]).clamp(min=0)


def readout(tensors: Tensors, state: Tensor) -> Tensor:
    at = "sharing.readout"
    hidden = (tensors[f"{at}.0.0.weight"] @ state + tensors[f"{at}.0.0.bias"]).clamp(min=0)
    return (tensors[f"{at}.1.weight"] @ hidden + tensors[f"{at}.1.bias"])[0]


GRAPH_REFERENCES: dict[str, Callable[[Tensors, Tensors, str], Tensor]] = {"one_for_all": one_for_all_reference}
