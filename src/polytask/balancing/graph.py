"""Which losses reach which parameters: one walk of the autograd graph."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from polytask.core.errors import MissingInput


def reached(losses: Mapping[str, Tensor]) -> dict[Tensor, int]:
    """Leaf tensor -> bitmask of the losses that depend on it (bit i: the i-th loss), in a fixed order of the graph.

    The graph is walked once from all losses together; the bits are then passed on from each node to what it depends on.
    """
    roots: dict[Any, int] = {}
    for bit, (task, loss) in enumerate(losses.items()):
        node = loss.grad_fn
        if node is None:
            raise MissingInput(f"loss of task {task!r} has no gradient: it depends on no parameter that requires one")
        roots[node] = roots.get(node, 0) | (1 << bit)
    masks: dict[Any, int] = dict(roots)
    for node in reversed(_postorder(list(roots))):
        mask = masks[node]
        for following, _ in node.next_functions:
            if following is not None:
                masks[following] = masks.get(following, 0) | mask
    return {node.variable: mask for node, mask in masks.items() if hasattr(node, "variable")}


def _postorder(roots: list[Any]) -> list[Any]:
    """Every node after all the nodes that it depends on."""
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
                (following, False) for following, _ in node.next_functions if following and following not in seen
            )
    return order
