"""MAXL's generated labels: a distribution over auxiliary classes for each row, within the group of its primary class.

Source: Liu, Davison and Johns 2019, arXiv:1901.08933: masked softmax, focal loss, and the entropy of the mean label.
Departures: none that is known; the paper's text was at hand in parts only.
Cost: that of the generator's network.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from polytask.core.errors import BadValue


class LabelGenerator(nn.Module):
    """labels = generator(inputs, primary): [B, K] with rows that sum to 1.

    Args:
        network: inputs -> [B, K], K the sum of `groups`.
        groups: how many auxiliary classes each primary class is divided into.
    """

    def __init__(self, network: nn.Module, groups: Sequence[int]) -> None:
        super().__init__()
        if not groups or any(not isinstance(size, int) or size < 1 for size in groups):
            raise BadValue("groups", list(groups), "a number of auxiliary classes, at least 1, for each primary class")
        self.network, self.groups = network, tuple(groups)

    def forward(self, inputs: object, primary: Int[Tensor, "B"]) -> Float[Tensor, "B K"]:
        outputs = self.network(inputs)
        if outputs.dim() != 2 or outputs.shape[1] != sum(self.groups):
            found, allowed = tuple(outputs.shape), f"(rows, {sum(self.groups)}), the sum of groups"
            raise BadValue("the shape of the generator's outputs", found, allowed)
        return masked_softmax(outputs, primary, self.groups)


def masked_softmax(
    outputs: Float[Tensor, "B K"], primary: Int[Tensor, "B"], groups: Sequence[int]
) -> Float[Tensor, "B K"]:
    """Softmax over the auxiliary classes of each row's primary class; 0 for the others.

    >>> masked_softmax(torch.zeros(1, 5), torch.tensor([1]), [3, 2]).tolist()
    [[0.0, 0.0, 0.0, 0.5, 0.5]]
    """
    owner = torch.repeat_interleave(torch.arange(len(groups)), torch.tensor(list(groups))).to(outputs.device)
    return torch.softmax(outputs.masked_fill(owner != primary[:, None], -torch.inf), dim=1)


def focal_loss(outputs: Float[Tensor, "B K"], labels: Float[Tensor, "B K"], gamma: float = 2.0) -> Float[Tensor, ""]:
    """Mean over rows of -sum_k y_k (1 - p_k)^gamma log p_k, p the softmax of the outputs: for soft labels too."""
    logarithms = torch.log_softmax(outputs, dim=1)
    return -(labels * (1 - logarithms.exp()) ** gamma * logarithms).sum(1).mean()


def collapse(labels: Float[Tensor, "B K"]) -> Float[Tensor, ""]:
    """sum_k m_k log m_k of the batch's mean label m: lowest, at -log K, where all classes are used alike."""
    mean = labels.mean(0)
    positive = torch.where(mean > 0, mean, 1.0)  # 0 log 0 is 0, but its slope is infinite, times 0 at the end
    return (positive * positive.log()).sum()
