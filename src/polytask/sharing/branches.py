"""Where the outputs of an encoder's modality branches meet."""

from collections.abc import Mapping

from torch import Tensor, nn

from polytask.sharing.attachments.contract import Attachment


class Branches(nn.Module):
    """{modality: output of its branch} -> the same, through an attachment where a stage names one.

    An encoder that fuses modalities has this as a module and passes its branches' outputs through it before it fuses
    them.

    Attributes:
        calibration: what a stage puts in.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calibration: Attachment | None = None

    def forward(self, outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if self.calibration is None or not self.training:
            return dict(outputs)
        return self.calibration.branches(outputs)
