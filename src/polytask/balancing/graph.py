"""Which losses reach which parameters: one walk of the autograd graph."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from polytask.core.errors import MissingInput


def reached(losses: Mapping[str, Tensor]) -> dict[Tensor, int]:
    """Leaf tensor -> bitmask of the losses that depend on it (bit i: the i-th loss), in a fixed order of the graph."""
    return reached_before(losses, ())[0]


def reached_before(losses: Mapping[str, Tensor], stops: Sequence[Tensor]) -> tuple[dict[Tensor, int], list[int]]:
    """(leaf -> bitmask, as `reached`, over paths that do not pass a stop; bitmask of the losses that reach each stop).

    The graph is walked once from all losses together; the bits are then passed on from each node to what it depends on.
    """
    roots: dict[Any, int] = {}
    for bit, (task, loss) in enumerate(losses.items()):
        if not loss.requires_grad:
            raise MissingInput(f"loss of task {task!r} has no gradient: it depends on no parameter that requires one")
        root = get_gradient_edge(loss).node
        roots[root] = roots.get(root, 0) | (1 << bit)
    edges = [get_gradient_edge(stop) for stop in stops]
    at_stops = {(edge.node, edge.output_nr): 0 for edge in edges}
    masks: dict[Any, int] = dict(roots)
    for node in reversed(_postorder(list(roots), at_stops)):
        mask = masks[node]
        for edge in node.next_functions:
            if edge in at_stops:
                at_stops[edge] |= mask
            elif edge[0] is not None:
                masks[edge[0]] = masks.get(edge[0], 0) | mask
    leaves = {node.variable: mask for node, mask in masks.items() if hasattr(node, "variable")}
    return leaves, list(at_stops.values())


def _postorder(roots: list[Any], stops: Collection[Any]) -> list[Any]:
    """Every node after all the nodes that it depends on; edges in `stops` are not followed."""
    order, seen = [], set()
    for root in roots:
        stack = [(root, False)]
        while stack:
            node, finished = stack.pop()
            if finished:
                order.append(node)
                continue
            if node in seen:
                continue
            seen.add(node)
            stack.append((node, True))
            if "CheckpointFunctionBackward" in node.name():
                raise MissingInput(
                    "the graph hides parameters behind re-entrant activation checkpointing: "
                    "call torch.utils.checkpoint with use_reentrant=False"
                )
            stack.extend(
                (edge[0], False)
                for edge in node.next_functions
                if edge[0] and edge[0] not in seen and edge not in stops
            )
    return order
