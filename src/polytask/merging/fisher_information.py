"""The diagonal of the Fisher information, row by row: E_y~p(y|x) (d log p(y|x) / d theta)^2, the expectation exact."""

from collections.abc import Mapping

import torch
from torch import Tensor

from polytask.core.errors import BadValue
from polytask.merging.distributions import Outputs


def add_information(
    sums: Mapping[str, Tensor],
    own: Mapping[str, Tensor],
    outputs: Tensor,
    kind: Outputs,
    where: str,
    *,
    weight: float = 1.0,
) -> None:
    """Adds every row's information, times `weight`, to `sums` in place; the outputs' graph stays usable.

    Args:
        sums: name -> a sum of the tensor's shape.
        own: name -> what the outputs were computed from; one that they do not depend on has no information.
        outputs: [rows] or [rows, outputs], of what `kind` says; values are normal with variance 1.
        where: whose outputs they are, for messages.

    Raises: BadValue for outputs of another shape.
    """
    for expected, term in _terms(outputs, kind, where):
        slopes = torch.autograd.grad(term, list(own.values()), retain_graph=True, allow_unused=True)
        for total, slope in zip(sums.values(), slopes, strict=True):
            if slope is not None:
                total.addcmul_(slope, slope, value=weight * expected)


def _terms(outputs: Tensor, kind: Outputs, where: str) -> list[tuple[float, Tensor]]:
    """(weight, scalar) of every row, such that the sum of weight * slope^2 over them is E_y (d log p)^2, summed."""
    if outputs.dim() > 2:
        raise BadValue("the shape of the outputs", list(outputs.shape), "[rows] or [rows, outputs]", where)
    if kind == "classes":
        log = outputs.log_softmax(-1)
        return [(float(p), one) for row in log for p, one in zip(row.detach().exp(), row, strict=True)]
    if kind == "labels":  # the slopes of log p and log (1 - p) are (1 - p) and -p times the logit's
        return [(float(p * (1 - p)), z) for z in outputs.flatten() for p in [z.detach().sigmoid()]]
    return [(1.0, value) for value in outputs.flatten()]
