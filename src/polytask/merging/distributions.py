"""Outputs of a head as distributions over labels: entropy, and how far two of them are apart; all in nats.

What a head's outputs mean is its kind of outputs: "classes" are logits of one label among C, [..., C]; "labels" are
logits of labels that each hold or not, any shape; "values" are numbers and no distribution.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from polytask.core.errors import BadValue

Outputs = Literal["classes", "labels", "values"]


def entropy(outputs: Tensor, kind: Outputs) -> Tensor:
    """Mean entropy over rows (and labels or pixels), a 0-d tensor."""
    log, p = _log_and_p(outputs, kind)
    return -(p * log).sum(-1).mean()


def entropies(outputs: Tensor, kind: Outputs) -> Tensor:
    """[B]: entropy of each row, its mean over labels or pixels."""
    log, p = _log_and_p(outputs, kind)
    return _of_rows(-(p * log).sum(-1))


def divergences(target: Tensor, outputs: Tensor, kind: Outputs) -> Tensor:
    """[B]: KL(p, q) of each row, its mean over labels or pixels, with p of `target` and q of `outputs`."""
    log_p, p = _log_and_p(target, kind)
    log_q, _ = _log_and_p(outputs, kind)
    return _of_rows((p * (log_p - log_q)).sum(-1))


def disagreement(outputs: Tensor, decided: Tensor, kind: Outputs) -> Tensor:
    """Mean of -log p of the labels that `decided` gives the most probability, with p of `outputs`."""
    log, _ = _log_and_p(outputs, kind)
    other, _ = _log_and_p(decided, kind)
    return -log.gather(-1, other.argmax(-1, keepdim=True)).mean()


def kullback_leibler(target: Tensor, outputs: Tensor, kind: Outputs) -> Tensor:
    """Mean of KL(p, q) over rows, with p of `target` and q of `outputs`."""
    log_p, p = _log_and_p(target, kind)
    log_q, _ = _log_and_p(outputs, kind)
    return (p * (log_p - log_q)).sum(-1).mean()


def jensen_shannon(one: Tensor, other: Tensor, kind: Outputs) -> Tensor:
    """Mean over rows of (KL(p, m) + KL(q, m)) / 2 with m = (p + q) / 2; at most log 2, and symmetric."""
    log_p, p = _log_and_p(one, kind)
    log_q, q = _log_and_p(other, kind)
    log_m = torch.logaddexp(log_p, log_q) - torch.log(torch.tensor(2.0, dtype=p.dtype, device=p.device))
    return ((p * (log_p - log_m)).sum(-1) + (q * (log_q - log_m)).sum(-1)).mean() / 2


def kind_of(outputs: Tensor) -> Outputs:
    """What outputs are where nobody says: [B] and [B, 1] logits of one label, else logits of the last axis' classes."""
    return "labels" if outputs.dim() < 2 or outputs.shape[-1] == 1 else "classes"


def kind_by_loss(loss: str) -> Outputs:
    """What the outputs of a task are that is trained by this loss."""
    known: dict[str, Outputs] = {"cross_entropy": "classes", "binary_cross_entropy": "labels"}
    return known.get(loss, "values")


def _of_rows(values: Tensor) -> Tensor:
    return values.flatten(1).mean(1) if values.dim() > 1 else values


def _log_and_p(outputs: Tensor, kind: Outputs) -> tuple[Tensor, Tensor]:
    """(log p, p), [..., C]; in float32 at least."""
    if kind == "values":
        raise BadValue("the outputs of a task", "values", "classes or labels: numbers have no distribution over labels")
    working = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
    log = F.log_softmax(working, -1) if kind == "classes" else F.logsigmoid(torch.stack([working, -working], -1))
    return log, log.exp()
