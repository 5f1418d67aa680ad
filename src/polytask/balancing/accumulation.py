"""Writing into `.grad`: all of a step's gradients or, if one of them is unusable, none."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from polytask.core.errors import GraphError


def accumulate(parameter: Tensor, grad: Tensor) -> None:
    """Adds a gradient that nobody else holds to the parameter's."""
    grad = grad.detach()
    kept = parameter.grad
    if kept is None:
        parameter.grad = grad
    elif kept.is_sparse:
        parameter.grad = kept + grad if grad.is_sparse else grad + kept
    else:
        kept.add_(grad)


def own(grad: Tensor) -> Tensor:
    """A copy of what autograd returned: that may be expanded, or the very tensor that another parameter got."""
    return grad.detach().clone() if grad.is_sparse else grad.detach().clone(memory_format=torch.contiguous_format)


def own_gradients(
    outputs: Sequence[Tensor], cotangents: Sequence[Tensor], leaves: Mapping[str, Tensor], *, keep_graph: bool
) -> dict[str, Tensor]:
    """name -> the gradient of the sum of outputs times cotangents; `.grad` stays as it is."""
    if not leaves:
        return {}
    with collected_grads(leaves) as found:
        torch.autograd.backward(outputs, cotangents, retain_graph=keep_graph, inputs=list(leaves.values()))
    return found


@contextmanager
def collected_grads(leaves: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """name -> what backward passes inside add to `.grad`, once they have; `.grad` is then as it was before.

    Autograd is left to write into `.grad`, since it alone knows which of its tensors nobody else holds and may be
    kept without a copy.
    """
    found: dict[str, Tensor] = {}
    with set_aside(leaves.values()):
        yield found
        found |= {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}
        for leaf in leaves.values():
            leaf.grad = None


def as_sparse(grad: Tensor, rows: Tensor) -> Tensor:
    """The gradient as a sparse tensor of the given rows; the others are zero."""
    return torch.sparse_coo_tensor(rows[None], grad[rows], grad.shape, is_coalesced=True, check_invariants=False)


def infinite(grads: Mapping[str, Tensor]) -> list[str]:
    """Names of the gradients that are not finite."""
    # a number a gradient; finite numbers whose sum overflows are looked at again
    sums = [_values(grad).sum() for grad in grads.values()]
    if math.isfinite(_total(sums)):
        return []
    return [name for name, grad in grads.items() if not _values(grad).isfinite().all()]


def _total(numbers: Sequence[Tensor]) -> float:
    """An accelerator is waited for once; on the CPU reading each number takes half the time."""
    if all(number.is_cpu for number in numbers):
        return sum(number.item() for number in numbers)
    return torch.stack([number.to(numbers[0]) for number in numbers]).sum().item()


def _values(grad: Tensor) -> Tensor:
    return grad._values() if grad.is_sparse else grad


@contextmanager
def set_aside(parameters: Iterable[Tensor]) -> Iterator[None]:
    """Inside, `.grad` is empty; what is written there is then added to what had been, or dropped after an error."""
    kept = [(parameter, parameter.grad) for parameter in parameters if parameter.requires_grad]
    for parameter, _ in kept:
        parameter.grad = None
    try:
        yield
    except BaseException:
        for parameter, grad in kept:
            parameter.grad = grad
        raise
    for parameter, before in kept:
        if before is not None:
            new, parameter.grad = parameter.grad, before
            if new is not None:
                accumulate(parameter, new)


@contextmanager
def usable_graph(what: str, step: int) -> Iterator[None]:
    """Turns autograd's errors about a graph that no longer fits its tensors into one line that says what happened."""
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if "modified by an inplace operation" in text:
            cause = "a parameter or activation was changed between the forward pass and backward"
        elif "backward through the graph a second time" in text:
            cause = "backward was already called on it, and its buffers are gone"
        else:
            raise
        raise GraphError(f"the graph of {what} cannot be used at step {step}: {cause}") from error
