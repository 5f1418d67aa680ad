"""RotoGrad: each task reads the representation through a rotation that turns its gradient towards the others'.

Source      Javaloy and Valera, "RotoGrad: gradient homogenization in multitask learning", arXiv:2103.02631, section 3.2
            with equation 3, Algorithm 1 (its rotations) and section 3.4: r_t = R_t z with R_t = exp(A_t - A_t'), and
            R_t descends -sum_n <R_t' g_nt, v_n>, where g_nt is the gradient at r_t and v_n the mean over tasks of the
            gradients at z, each task's divided by its norm over the batch. Both are held fixed. The task's loss does
            not move R_t.
Departures  the magnitudes are homogenised by a rule (rotograd_scaling), not here. Rotations start at the identity;
            Adam, and a learning rate that falls by a factor a step beside the stage's schedule, stand for "slower than
            the network". The mean is over the present tasks.
Cost        one more pass through each present task's head, and a matrix exponential, O(dimensions^3), a task.
"""

from collections.abc import Iterable, Mapping
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from polytask.core.errors import BadValue
from polytask.sharing.attachments.contract import Attachment, gradient_at
from polytask.sharing.layers import TaskModules
from polytask.sharing.spec import AttachmentOptions


class Rotation(nn.Module):
    """A rotation of m dimensions, the identity at the start, given by the m (m - 1) / 2 numbers below A's diagonal."""

    def __init__(self, dimensions: int) -> None:
        super().__init__()
        self.dimensions = dimensions
        self.skew = nn.Parameter(torch.zeros(dimensions * (dimensions - 1) // 2))

    def forward(self) -> Float[Tensor, "m m"]:
        rows, columns = torch.tril_indices(self.dimensions, self.dimensions, -1, device=self.skew.device)
        lower = self.skew.new_zeros(self.dimensions, self.dimensions).index_put((rows, columns), self.skew)
        return torch.matrix_exp(lower - lower.mT)


class RotoGrad(Attachment):
    """A rotation a task."""

    transforms = True
    has_term = True
    spreads = True
    trains_itself = True

    class Options(AttachmentOptions):
        """Attributes: dimensions, how many of the representation's are rotated (null: all); learning_rate of the
        rotations at the start, and decay, what it is multiplied by at each step."""

        kind: Literal["rotograd"] = "rotograd"
        dimensions: PositiveInt | None = None
        learning_rate: float = Field(default=5e-4, gt=0, allow_inf_nan=False)
        decay: float = Field(default=0.9999, gt=0, le=1)

    def __init__(self, tasks: Iterable[str], width: int, options: Options, seed: int = 0) -> None:
        super().__init__(tasks, width, options, seed)
        self.dimensions = width if options.dimensions is None else options.dimensions
        if not 2 <= self.dimensions <= width:
            allowed = f"from 2 to the representation's width, {width}"
            raise BadValue("dimensions", self.dimensions, allowed, "attachment 'rotograd'")
        self.rotations = TaskModules()
        for task in tasks:
            self.rotations[task] = Rotation(self.dimensions)

    def transform(self, representations: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {task: self._rotated(task, z) for task, z in representations.items()}

    def _rotated(self, task: str, z: Float[Tensor, "B d"]) -> Float[Tensor, "B d"]:
        with torch.no_grad():  # the task's loss does not move its rotation
            rotation = self.rotations[task]()
        turned = z[:, : self.dimensions] @ rotation.mT
        return turned if self.dimensions == z.shape[1] else torch.cat([turned, z[:, self.dimensions :]], dim=1)

    def term(self, losses: Mapping[str, Tensor], representation: Float[Tensor, "B d"]) -> Tensor:
        """Equation 3, summed over the present tasks; a function of the rotations only."""
        at_z = {task: gradient_at(task, loss, representation) for task, loss in losses.items()}
        norms = self.total(torch.stack([grad.square().sum() for grad in at_z.values()])).sqrt()
        lengths = torch.where(norms > 0, norms, 1.0)
        unit = [grad / length for grad, length in zip(at_z.values(), lengths, strict=True)]
        target = torch.stack(unit).mean(0)[:, : self.dimensions]
        return -torch.stack([self._aligned(task, grad, target) for task, grad in at_z.items()]).sum()

    def _aligned(self, task: str, at_z: Float[Tensor, "B d"], target: Float[Tensor, "B m"]) -> Tensor:
        """sum_n <R' g_n, v_n> with g = R at_z, the gradient at the rotated representation."""
        rotation = self.rotations[task]()
        at_rotated = at_z[:, : self.dimensions] @ rotation.detach().mT
        return ((at_rotated @ rotation) * target).sum()

    def optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.options.learning_rate)

    def learning_rate(self, step: int) -> float:
        return self.options.learning_rate * self.options.decay**step
