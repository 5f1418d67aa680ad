"""Modality calibration: what a fused representation passes back gets one norm in every modality's branch.

Source      Huang, Lin, Liu et al. 2023, "FULLER: unified multi-modality multi-task 3D perception via multi-level
            gradient calibration", arXiv:2307.16617: the tasks' gradients are calibrated at the last shared layer (here
            by a rule with engine `representation`), then, before they pass on to the modality branches, their
            magnitudes there are brought to one level, so that tasks attend to all modalities.
Departures  we read what the paper's abstract and figure say and not its formulas: the level is ours, the mean of the
            branches' norms. A branch without a gradient keeps none and does not count.
Cost        a norm and a product for each branch's output.
"""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from polytask.sharing.attachments.contract import Attachment
from polytask.sharing.spec import AttachmentOptions


class ModalityCalibration(Attachment):
    """Between the branches and what fuses them: {modality: output} -> the same outputs."""

    calibrates_branches = True

    class Options(AttachmentOptions):
        """No options."""

        kind: Literal["modality_calibration"] = "modality_calibration"

    def branches(self, outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The outputs; in a backward pass through all of them, their gradients get the mean of their norms."""
        return dict(zip(outputs, _OneNorm.apply(*outputs.values()), strict=True))


class _OneNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *outputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(output.view_as(output) for output in outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        norms = torch.stack([grad.double().norm() for grad in grads])
        there = norms > 0
        level = norms.sum() / there.sum().clamp(min=1)
        factors = torch.where(there, level / torch.where(there, norms, 1.0), 0.0)
        return tuple(grad * factor.to(grad.dtype) for grad, factor in zip(grads, factors, strict=True))
