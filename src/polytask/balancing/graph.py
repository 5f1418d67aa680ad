"""Which losses reach which parameters: one walk of the autograd graph."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from polytask.core.errors import MissingInput


@dataclass(frozen=True)
class Walk:
    """What one walk of the graph finds.

    Attributes:
        masks: node -> bitmask of the losses that depend on it (bit i: the i-th loss), in a fixed order of the graph,
            over paths that do not pass a stop.
        at_stops: bitmask of the losses that reach each stop.
    """

    masks: dict[Any, int]
    at_stops: list[int]

    @property
    def leaves(self) -> dict[Tensor, int]:
        """Leaf tensor -> bitmask."""
        return {node.variable: mask for node, mask in self.masks.items() if hasattr(node, "variable")}

    def users(self) -> dict[Any, list[tuple[Any, int]]]:
        """Node -> (the nodes that use what it stands for, in which of their arguments)."""
        found: dict[Any, list[tuple[Any, int]]] = {}
        for node in self.masks:
            for position, (used, _) in enumerate(node.next_functions):
                if used is not None:
                    found.setdefault(used, []).append((node, position))
        return found


def reached(losses: Mapping[str, Tensor]) -> dict[Tensor, int]:
    """Leaf tensor -> bitmask of the losses that depend on it."""
    return walked(losses).leaves


def walked(losses: Mapping[str, Tensor], stops: Sequence[Tensor] = ()) -> Walk:
    """The graph is walked once from all losses together; the bits are then passed on from each node to what it uses."""
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
    return Walk(masks, list(at_stops.values()))


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
