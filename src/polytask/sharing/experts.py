"""Experts: several networks of the same shape, held in one tensor a layer so that they run as one matrix product."""

import math
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from polytask.sharing.layers import ACTIVATIONS, Activation


class Experts(nn.Module):
    """E networks of linear layers, each followed by an activation, on the same input.

    Cost: E x (sum of fan-in x fan-out) multiply-adds a row, in one product for the first layer (all experts read its
    input) and one batched product for each further one.

    Args:
        experts: E.
        width: width of the input.
        hidden_sizes: output width of each layer, the last is the width of the result.
    """

    def __init__(
        self, experts: int, width: int, hidden_sizes: tuple[int, ...], *, activation: Activation = "relu"
    ) -> None:
        super().__init__()
        sizes = list(pairwise((width, *hidden_sizes)))
        self.weights = nn.ParameterList(torch.empty(experts, outputs, inputs) for inputs, outputs in sizes)
        self.biases = nn.ParameterList(torch.empty(experts, outputs) for _, outputs in sizes)
        self.activation = ACTIVATIONS[activation]()
        self.width = hidden_sizes[-1]
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Each expert starts as `nn.Linear` would; equal starts would keep the experts equal for ever."""
        for weight, bias in zip(self.weights, self.biases, strict=True):
            bound = 1 / math.sqrt(weight.shape[-1])
            nn.init.uniform_(weight, -bound, bound)
            nn.init.uniform_(bias, -bound, bound)

    def forward(self, x: Float[Tensor, "B d"]) -> Float[Tensor, "E B width"]:
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            if layer == 0:
                experts, outputs, _ = weight.shape
                x = functional.linear(x, weight.flatten(0, 1), bias.flatten())
                x = x.unflatten(1, (experts, outputs)).transpose(0, 1)
            else:
                x = torch.baddbmm(bias.unsqueeze(1), x, weight.mT)
            x = self.activation(x)
        return x
