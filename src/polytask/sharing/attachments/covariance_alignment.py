"""Covariance alignment: a matrix a task turns its representation before the module that all tasks share.

Source      Wu, Zhang and Re 2020, "Understanding and improving information transfer in multi-task learning",
            arXiv:2005.00944, Algorithm 1: Z_t = X_t R_t is the input of the shared module B, and R_t and the output
            modules are trained with B fixed.
Departures  X_t is the encoder's output, which all tasks have in common where they have rows in common. B is `layers`
            layers on top of it, of the same width, beside what the architecture shares there (mmoe's experts). The
            alignments start at the identity, which the paper does not say. Which of these a stage trains is its own
            `trainable`; step 3 of the algorithm is [attachments.covariance_alignment.alignments, heads].
Cost        B x width^2 multiply-adds a task for the alignment, and for each of the layers, and what the architecture
            computes from the representation once a task instead of once.
"""

from collections.abc import Iterable, Mapping
from typing import Literal

from jaxtyping import Float
from pydantic import NonNegativeInt
from torch import Tensor, nn

from polytask.sharing.attachments.contract import Attachment
from polytask.sharing.layers import Activation, TaskModules, dense_layers, seeded
from polytask.sharing.spec import AttachmentOptions


class CovarianceAlignment(Attachment):
    """{task: z} -> {task: B(z R_t)}; trained by the tasks' losses like the rest of the model."""

    transforms = True

    class Options(AttachmentOptions):
        """Attributes: layers of the shared module B; 0 leaves what the architecture shares above the
        representation."""

        kind: Literal["covariance_alignment"] = "covariance_alignment"
        layers: NonNegativeInt = 1
        activation: Activation = "relu"

    def __init__(self, tasks: Iterable[str], width: int, options: Options, seed: int = 0) -> None:
        super().__init__(tasks, width, options, seed)
        self.alignments = TaskModules()
        for task in tasks:
            alignment = nn.Linear(width, width, bias=False)
            nn.init.eye_(alignment.weight)
            self.alignments[task] = alignment
        with seeded(seed, "attachment", "covariance_alignment"):
            self.shared = dense_layers(width, (width,) * options.layers, activation=options.activation)

    def transform(self, representations: Mapping[str, Float[Tensor, "B d"]]) -> dict[str, Tensor]:
        return {task: self.shared(self.alignments[task](z)) for task, z in representations.items()}
