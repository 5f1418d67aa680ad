"""Experts: several networks of the same shape, held in one tensor a layer so that they run as one matrix product."""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from polytask.sharing.layers import ACTIVATIONS, NORMALIZATIONS, Activation, Normalization


class Experts(nn.Module):
    """E networks of linear layers, each followed by a normalisation, if any, and an activation.

    Cost: E x (sum of fan-in x fan-out) multiply-adds a row, in one product for the first layer (all experts read its
    input) and one batched product for each further one.

    Args:
        experts: E.
        width: width of the input.
        hidden_sizes: output width of each layer, the last is the width of the result.
    """

    def __init__(
        self,
        experts: int,
        width: int,
        hidden_sizes: tuple[int, ...],
        *,
        activation: Activation = "relu",
        normalization: Normalization = "none",
    ) -> None:
        super().__init__()
        sizes = list(pairwise((width, *hidden_sizes)))
        self.weights = nn.ParameterList(torch.empty(experts, outputs, inputs) for inputs, outputs in sizes)
        self.biases = nn.ParameterList(torch.empty(experts, outputs) for _, outputs in sizes)
        self.activation = ACTIVATIONS[activation]()
        self.normalizations = nn.ModuleList(
            ExpertNorm(normalization, experts, size) for size in hidden_sizes if normalization != "none"
        )
        self.width = hidden_sizes[-1]
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Each expert starts as `nn.Linear` would; equal starts would keep the experts equal for ever."""
        for weight, bias in zip(self.weights, self.biases, strict=True):
            bound = 1 / math.sqrt(weight.shape[-1])
            nn.init.uniform_(weight, -bound, bound)
            nn.init.uniform_(bias, -bound, bound)

    def __len__(self) -> int:
        return len(self.weights[0])

    def forward(self, x: Float[Tensor, "B d"]) -> Float[Tensor, "E B width"]:
        return run_together([self], x)


class ExpertNorm(nn.Module):
    """A normalisation of each expert's channels by itself."""

    def __init__(self, kind: Normalization, experts: int, width: int) -> None:
        super().__init__()
        if kind == "batch":  # E width channels, each with statistics of its own
            self.norm = NORMALIZATIONS[kind](experts * width)
        else:
            self.norm = nn.ModuleList(NORMALIZATIONS[kind](width) for _ in range(experts))

    def forward(self, x: Float[Tensor, "E B width"]) -> Float[Tensor, "E B width"]:
        if isinstance(self.norm, nn.ModuleList):
            return torch.stack([norm(rows) for norm, rows in zip(self.norm, x, strict=True)])
        rows = self.norm(x.transpose(0, 1).flatten(1))
        return rows.unflatten(1, (len(x), -1)).transpose(0, 1)


def run_together(banks: Sequence[Experts], x: Float[Tensor, "B d"] | Sequence[Tensor]) -> Float[Tensor, "E B width"]:
    """What the experts of several banks of the same shape give, bank after bank, in one product a layer.

    Args:
        banks: experts with the same layers and activation.
        x: the rows that all read, or those of each bank, [B, d] each.

    Cost: as the banks' own, and one copy of their weights where there are several.
    """
    for layer in range(len(banks[0].weights)):
        weight = _joined([bank.weights[layer] for bank in banks])  # [E, outputs, inputs]
        bias = _joined([bank.biases[layer] for bank in banks])
        if isinstance(x, Tensor) and x.dim() == 2:
            x = functional.linear(x, weight.flatten(0, 1), bias.flatten())
            x = x.unflatten(1, bias.shape).transpose(0, 1)
        else:
            x = x if isinstance(x, Tensor) else _for_each_expert(banks, x)
            x = torch.baddbmm(bias.unsqueeze(1), x, weight.mT)
        if banks[0].normalizations:
            parts = x.split([len(bank) for bank in banks])
            x = torch.cat([bank.normalizations[layer](part) for bank, part in zip(banks, parts, strict=True)])
        x = banks[0].activation(x)
    assert isinstance(x, Tensor)  # an expert has a layer
    return x


def _joined(tensors: list[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors)


def _for_each_expert(banks: Sequence[Experts], x: Sequence[Tensor]) -> Float[Tensor, "E B d"]:
    return torch.cat([rows.expand(len(bank), *rows.shape) for bank, rows in zip(banks, x, strict=True)])


def mixed(weights: Float[Tensor, "B T E"], experts: Float[Tensor, "E B width"]) -> Float[Tensor, "B T width"]:
    """For each row and task the sum of the experts' outputs, weighted: one batched product."""
    return weights.to(experts.dtype) @ experts.transpose(0, 1)
