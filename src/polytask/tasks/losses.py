"""Losses: sums over the labels that exist, so that numerators and counts can be added up over pieces and processes.

A loss takes (outputs, labels, present) of a batch and returns the sum over present labels, a 0-d tensor with its
graph. What stands where no label exists, NaN included, reaches neither the sum nor a gradient: it is replaced before
the loss is computed, because a gradient of 0 times NaN would be NaN.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from polytask.core.errors import BadValue

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def binary_cross_entropy(outputs: Tensor, labels: Tensor, present: Tensor) -> Tensor:
    """Sum of -log p(label), p = sigmoid(output); all of shape [B], or [B, L] for several labels a row. In nats."""
    outputs, labels, complete = _filled(outputs, labels, present)
    weight = None if complete else present.to(outputs.dtype)
    return F.binary_cross_entropy_with_logits(outputs, labels, weight=weight, reduction="sum")


def cross_entropy(outputs: Tensor, labels: Tensor, present: Tensor) -> Tensor:
    """Sum of -log p(label), p = softmax(outputs); outputs [B, C], labels (class numbers) and present [B], or the same
    with pixels [B, H, W]. In nats."""
    if outputs.ndim < 2 or labels.shape != outputs.shape[:-1] or present.shape != labels.shape:
        raise _wrong_shapes(outputs, labels, present, "[B, C], [B] and [B]")
    outputs, labels, present = _single_precision(outputs).flatten(0, -2), labels.flatten(), present.flatten()
    if _complete(present):
        return F.cross_entropy(outputs, labels, reduction="sum")
    outputs = torch.where(present[:, None], outputs, 0.0)
    # A class number that no class has marks the rows to leave out.
    return F.cross_entropy(outputs, torch.where(present, labels, -1), ignore_index=-1, reduction="sum")


def mean_squared_error(outputs: Tensor, labels: Tensor, present: Tensor) -> Tensor:
    """Sum of (output - label)^2."""
    outputs, labels, _ = _filled(outputs, labels, present)
    return F.mse_loss(outputs, labels, reduction="sum")


def l1(outputs: Tensor, labels: Tensor, present: Tensor) -> Tensor:
    """Sum of |output - label|."""
    outputs, labels, _ = _filled(outputs, labels, present)
    return F.l1_loss(outputs, labels, reduction="sum")


def huber(outputs: Tensor, labels: Tensor, present: Tensor) -> Tensor:
    """Sum of d^2 / 2 where d = |output - label| <= 1, else of d - 1/2 (Huber 1964; delta is 1 standard deviation)."""
    outputs, labels, _ = _filled(outputs, labels, present)
    return F.huber_loss(outputs, labels, reduction="sum", delta=1.0)


def cosine(outputs: Tensor, labels: Tensor, present: Tensor) -> Tensor:
    """Sum of C (1 - cosine of output and label), each [.., C]: its mean over the C numbers is that over the vectors."""
    outputs, labels, _ = _filled(outputs, labels, present)
    distances = outputs.shape[-1] * (1 - F.cosine_similarity(outputs, labels, dim=-1))
    return torch.where(present.all(dim=-1), distances, 0.0).sum()


def pairwise_logistic(outputs: Tensor, labels: Tensor, present: Tensor, groups: Tensor) -> Tensor:
    """Sum of log(1 + exp(-(s_i - s_j))) over the pairs of rows of a group with label i above label j (Burges et al.
    2005, RankNet)."""
    higher, lower = ordered_pairs(labels, present, groups)
    outputs = _single_precision(outputs)
    return F.softplus(outputs[lower] - outputs[higher]).sum()


def ordered_pairs(labels: Tensor, present: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:
    """(rows with the higher label, rows with the lower): every pair of rows [B] of a group whose labels differ."""
    if not labels.shape == present.shape == groups.shape or labels.ndim != 1:
        raise BadValue("the shape of labels, present and groups", list(labels.shape), "one row dimension for all three")
    rows = present.nonzero()[:, 0]
    rows = rows[groups[rows].argsort(stable=True)]
    sizes = torch.unique_consecutive(groups[rows], return_counts=True)[1]
    partners = sizes.repeat_interleave(sizes)  # of each row: the rows of its group, itself among them
    starts = (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    first = torch.arange(len(rows), device=rows.device).repeat_interleave(partners)
    place = torch.arange(len(first), device=rows.device) - (partners.cumsum(0) - partners)[first]
    first, second = rows[first], rows[starts[first] + place]
    above = labels[first] > labels[second]
    return first[above], second[above]


LOSSES: dict[str, Loss] = {
    "binary_cross_entropy": binary_cross_entropy,
    "cross_entropy": cross_entropy,
    "mean_squared_error": mean_squared_error,
    "l1": l1,
    "huber": huber,
    "cosine": cosine,
}

GROUPED_LOSSES: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "pairwise_logistic": pairwise_logistic,
}
"""Losses over the pairs that `ordered_pairs` gives, which also read the groups of the rows."""


def _filled(outputs: Tensor, labels: Tensor, present: Tensor) -> tuple[Tensor, Tensor, bool]:
    """(outputs, labels, whether none is absent), with 0 in place of absent ones (so that their difference is 0)."""
    if not outputs.shape == labels.shape == present.shape:
        raise _wrong_shapes(outputs, labels, present, "one shape for all three")
    outputs = _single_precision(outputs)
    if _complete(present):
        return outputs, labels.to(outputs.dtype), True
    return torch.where(present, outputs, 0.0), torch.where(present, labels, 0.0).to(outputs.dtype), False


def _complete(present: Tensor) -> bool:
    """True if every label exists, so that nothing needs replacing.

    Asked on the CPU only: an accelerator would have to be waited for, which costs more than replacing.
    """
    return present.device.type == "cpu" and bool(present.all())


def _single_precision(outputs: Tensor) -> Tensor:
    """Half precision is not enough for a sum over a batch."""
    return outputs.float() if outputs.dtype in (torch.float16, torch.bfloat16) else outputs


def _wrong_shapes(outputs: Tensor, labels: Tensor, present: Tensor, allowed: str) -> BadValue:
    shapes = [list(tensor.shape) for tensor in (outputs, labels, present)]
    return BadValue("the shape of outputs, labels and present", shapes, allowed)
