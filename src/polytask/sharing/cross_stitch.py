"""Cross-stitch networks: a tower a task, whose layers exchange features through learned mixing numbers."""

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


class CrossStitch(Sharing):
    """After each layer of the tasks' towers x_t <- sum_u a_tu x_u, with a number a_tu for each channel.

    Source: Misra et al. 2016, arXiv:1604.03539, its cross-stitch units.
    Departures: the towers start at the encoder's output (an encoder without hidden layers gives the inputs); the last
    layer is stitched too.
    Cost: every task's tower up to the last layer, whichever tasks are named; at the last, the named tasks' mixtures.
    """

    isolated = False

    class Options(SharingOptions):
        """Attributes: hidden_sizes of a tower; own, how much of itself a task keeps at the start, the rest being
        divided among the others; channels, whether each channel has numbers of its own.
        """

        kind: Literal["cross_stitch"] = "cross_stitch"
        hidden_sizes: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (64, 64)
        activation: Activation = "relu"
        own: float = Field(default=0.9, ge=0, le=1)
        channels: bool = True

    def __init__(self, make_encoder: MakeEncoder, tasks: Iterable[str], options: Options, seed: int = 0) -> None:
        super().__init__(make_encoder, tasks, options, seed)
        self.tasks = list(tasks)
        self.encoder = make_encoder()
        self.levels = tower_levels(self.tasks, self.encoder.width, options.hidden_sizes, options.activation, seed)
        self.stitches = nn.ModuleList(
            Stitch(len(self.tasks), size if options.channels else 1, options.own) for size in options.hidden_sizes
        )
        self.width = options.hidden_sizes[-1]

    def representation(self, inputs: Mapping[str, Tensor]) -> Float[Tensor, "B d"]:
        """The encoder's output, which every tower reads."""
        return self.encoder(inputs)

    def features(self, representation: Float[Tensor, "B d"], tasks: list[str]) -> dict[str, Tensor]:
        return exchanged(self.levels, self.stitches, representation, self.tasks, tasks)


class Stitch(nn.Module):
    """The numbers a_tu of one layer, [to, from, channels]; a row of them sums to 1 at the start."""

    def __init__(self, tasks: int, channels: int, own: float) -> None:
        super().__init__()
        self.weights = nn.Parameter(shares(tasks, own).unsqueeze(-1).repeat(1, 1, channels))

    def forward(self, streams: Float[Tensor, "T B d"], rows: list[int] | None) -> Float[Tensor, "named B d"]:
        """The mixtures of all tasks, or of those in `rows`."""
        weights = self.weights if rows is None else self.weights[rows]
        if weights.shape[-1] == 1:
            return torch.tensordot(weights[..., 0].to(streams), streams, dims=1)
        return torch.einsum("tud,ubd->tbd", weights.to(streams), streams)
