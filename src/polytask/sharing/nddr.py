"""Neural discriminative dimensionality reduction: after each layer a task reads all tasks' features by a matrix."""

from collections.abc import Iterable, Mapping
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from polytask.sharing.contract import MakeEncoder, Sharing
from polytask.sharing.layers import Activation
from polytask.sharing.spec import SharingOptions
from polytask.sharing.towers import exchanged, shares, tower_levels


class NDDR(Sharing):
    """After each layer of the tasks' towers x_t <- W_t [x_1; ...; x_T], a 1 x 1 convolution over the joined channels.

    Source: Gao et al. 2019, arXiv:1801.08297, its NDDR layer with the diagonal start.
    Departures: no batch normalisation and no weight decay of its own after the fusion (the optimiser's serves); the
    towers start at the encoder's output.
    Cost: every task's tower up to the last layer, whichever tasks are named, and B x T x T x width^2 multiply-adds a
    fusion.
    """

    isolated = False

    class Options(SharingOptions):
        """Attributes: hidden_sizes of a tower; own, how much of itself a task keeps at the start."""

        kind: Literal["nddr"] = "nddr"
        hidden_sizes: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (64, 64)
        activation: Activation = "relu"
        own: float = Field(default=0.9, ge=0, le=1)

    def __init__(self, make_encoder: MakeEncoder, tasks: Iterable[str], options: Options, seed: int = 0) -> None:
        super().__init__(make_encoder, tasks, options, seed)
        self.tasks = list(tasks)
        self.encoder = make_encoder()
        self.levels = tower_levels(self.tasks, self.encoder.width, options.hidden_sizes, options.activation, seed)
        self.fusions = nn.ModuleList(Fusion(len(self.tasks), size, options.own) for size in options.hidden_sizes)
        self.width = options.hidden_sizes[-1]

    def representation(self, inputs: Mapping[str, Tensor]) -> Float[Tensor, "B d"]:
        """The encoder's output, which every tower reads."""
        return self.encoder(inputs)

    def features(self, representation: Float[Tensor, "B d"], tasks: list[str]) -> dict[str, Tensor]:
        return exchanged(self.levels, self.fusions, representation, self.tasks, tasks)


class Fusion(nn.Module):
    """A matrix a task over the joined features, [T, width, T width]; at the start multiples of the identity."""

    def __init__(self, tasks: int, width: int, own: float) -> None:
        super().__init__()
        start = torch.kron(shares(tasks, own), torch.eye(width))
        self.weights = nn.Parameter(start.unflatten(0, (tasks, width)))

    def forward(self, streams: Float[Tensor, "T B d"], rows: list[int] | None) -> Float[Tensor, "named B d"]:
        """The fused features of all tasks, or of those in `rows`."""
        weights = self.weights if rows is None else self.weights[rows]
        joined = streams.transpose(0, 1).flatten(1)  # [B, T d]
        return (joined @ weights.flatten(0, 1).mT).unflatten(1, weights.shape[:2]).transpose(0, 1)
