"""Rep-MTL: keeps each task's saliency its own, row by row, and aligns the tasks' saliencies of one row.

Source      Wang, Li and Xu 2025, "Rep-MTL: unleashing the power of representation-level task saliency for multi-task
            learning", arXiv:2507.21049, equations 3 to 10. The saliency S_t = dL_t / dz; its mean over channels,
            normalised over tasks by absolute value to P_t, gives the entropy of equation 6. Equation 9 contrasts a
            row's affinity maps S_t S_t' with its anchor, against the other rows' anchors, by cosine.
Departures  for vectors (no spatial axes). Equation 8 leaves open over what the anchor goes: here A has a column a task,
            so the anchor is sum_t s_t s_t'. Equation 9 leaves its t open: here the mean over tasks and rows. A row that
            a task has no gradient for has no affinity map for it; a row without any is left out. The temperature is not
            stated in what we could read; both weights default to the 0.9 of its sensitivity study.
Cost        one more pass through each present task's head, differentiated twice, and one through the encoder; for
            equation 9 the smaller of B width^2 and about (B T)^2 numbers.
"""

from collections.abc import Mapping
from typing import Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from polytask.sharing.attachments.contract import Attachment, gradient_at
from polytask.sharing.spec import AttachmentOptions


class RepMTL(Attachment):
    """A term of the training loss; the model computes as it would without it."""

    has_term = True

    class Options(AttachmentOptions):
        """Attributes: regulation and alignment, the weights of equations 6 and 9; temperature of the latter."""

        kind: Literal["rep_mtl"] = "rep_mtl"
        regulation: float = Field(default=0.9, ge=0, allow_inf_nan=False)
        alignment: float = Field(default=0.9, ge=0, allow_inf_nan=False)
        temperature: float = Field(default=0.1, gt=0, allow_inf_nan=False)

    def term(self, losses: Mapping[str, Tensor], representation: Float[Tensor, "B d"]) -> Tensor:
        """The last two summands of equation 10."""
        found = [gradient_at(task, loss, representation, differentiable=True) for task, loss in losses.items()]
        saliency = torch.stack(found)
        entropy = saliency_entropy(saliency)
        contrast = cross_task_alignment(saliency, self.options.temperature)
        return self.options.regulation * entropy + self.options.alignment * contrast


def saliency_entropy(saliency: Float[Tensor, "T B d"]) -> Tensor:
    """Equation 6: the mean over rows of the entropy of how the tasks share a row's mean saliency.

    >>> one_task_a_row = torch.tensor([[[1.0], [0.0]], [[0.0], [-3.0]]])
    >>> bool(saliency_entropy(one_task_a_row) == 0)
    True
    """
    size = saliency.mean(2).abs()
    total = size.sum(0)
    share = size / torch.where(total > 0, total, 1.0)
    return -(share * torch.where(share > 0, share, 1.0).log()).sum(0).mean()


def cross_task_alignment(saliency: Float[Tensor, "T B d"], temperature: float) -> Tensor:
    """Equation 9: the mean over tasks and rows of -log(exp(s_bt / tau) / sum_{k != b} exp(s_bk / tau)), with s_bt the
    cosine of row b's anchor and its affinity map for t, s_bk that of the anchors of rows b and k.

    <u u', v v'> = (u . v)^2, so few cosines need a [d, d] map. 0 where fewer than two rows have a gradient.
    """
    largest = saliency.detach().abs().amax((0, 2))
    kept = largest > 0
    rows = int(kept.sum())
    if rows < 2:
        return saliency.new_zeros(())
    # a factor common to a row's saliencies cancels in every cosine; this one keeps fourth powers within range
    saliency = saliency[:, kept] / largest[kept, None]
    square = saliency.square().sum(2)
    present: Bool[Tensor, "T B"] = square.detach() > 0
    within = torch.einsum("tbi,ubi->tub", saliency, saliency).square()  # <S_t S_t', S_u S_u'> of each row
    norms = within.sum((0, 1)).sqrt()
    negatives = _between_anchors(saliency) / (norms[:, None] * norms) / temperature
    itself = torch.eye(rows, dtype=torch.bool, device=saliency.device)
    against = negatives.masked_fill(itself, -torch.inf).logsumexp(1)
    positives = within.sum(1) / (torch.where(present, square, 1.0) * norms) / temperature
    return (against - positives)[present].mean()


def _between_anchors(saliency: Float[Tensor, "T B d"]) -> Float[Tensor, "B B"]:
    """Inner products of the rows' anchors sum_t s_t s_t', by whichever way takes fewer numbers."""
    tasks, rows, width = saliency.shape
    if width**2 < tasks**2 * rows:
        anchors = torch.einsum("tbi,tbj->bij", saliency, saliency).flatten(1)
        return anchors @ anchors.mT
    half = saliency.new_zeros(rows, rows)  # each pair of tasks once
    for t in range(tasks):
        for u in range(t + 1):
            half = half + (saliency[t] @ saliency[u].mT).square() * (0.5 if t == u else 1.0)
    return half + half.mT
