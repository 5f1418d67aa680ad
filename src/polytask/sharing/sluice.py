"""Sluice networks: towers in two subspaces each that exchange features, and skip connections from every layer."""

from collections.abc import Iterable, Mapping
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from polytask.sharing.contract import MakeEncoder, Sharing
from polytask.sharing.layers import Activation, TaskModules
from polytask.sharing.spec import SharingOptions
from polytask.sharing.tape import listening, note_penalty
from polytask.sharing.towers import tower_levels


class Sluice(Sharing):
    """Each layer has two halves a task; all 2 T halves are mixed by numbers a, and a task's features are the sum over
    layers weighted by its numbers b. A penalty keeps the two halves of a task's layer orthogonal.

    Source: Ruder et al. 2019, arXiv:1705.08142 ("Latent multi-task architecture learning"): the subspaces with their
    alpha and beta numbers and the squared Frobenius norm of the product of the two halves' weights.
    Departures: the towers start at the encoder's output; the features are the weighted sum of the layers (so all have
    one width), where the paper's may be joined as well.
    Cost: every task's tower, whichever tasks are named, but for the last layer's mixtures.
    """

    isolated = False

    class Options(SharingOptions):
        """Attributes: levels of width `hidden_size`, an even number; own, how much of itself a half keeps at the start;
        orthogonality, the factor of the penalty.
        """

        kind: Literal["sluice"] = "sluice"
        levels: PositiveInt = 2
        hidden_size: int = Field(default=64, ge=2, multiple_of=2)
        activation: Activation = "relu"
        own: float = Field(default=0.9, ge=0, le=1)
        orthogonality: float = Field(default=0.0, ge=0)

    def __init__(self, make_encoder: MakeEncoder, tasks: Iterable[str], options: Options, seed: int = 0) -> None:
        super().__init__(make_encoder, tasks, options, seed)
        self.tasks, self.orthogonality = list(tasks), options.orthogonality
        self.encoder = make_encoder()
        sizes = (options.hidden_size,) * options.levels
        self.levels = tower_levels(self.tasks, self.encoder.width, sizes, options.activation, seed)
        halves = 2 * len(self.tasks)
        start = torch.full((halves, halves), (1 - options.own) / (halves - 1)).fill_diagonal_(options.own)
        self.alphas = nn.ParameterList(start.clone() for _ in sizes)
        self.betas: TaskModules[Betas] = TaskModules()
        for task in self.tasks:
            self.betas[task] = Betas(options.levels)
        self.width = options.hidden_size

    def representation(self, inputs: Mapping[str, Tensor]) -> Float[Tensor, "B d"]:
        """The encoder's output, which every tower reads."""
        return self.encoder(inputs)

    def features(self, representation: Float[Tensor, "B d"], tasks: list[str]) -> dict[str, Tensor]:
        streams: Tensor = representation
        rows = [self.tasks.index(task) for task in tasks]
        kept: list[Tensor] = []
        for level, alpha in zip(self.levels, self.alphas, strict=True):
            streams = self._mixed(level(streams), alpha, rows if level is self.levels[-1] else None)
            kept.append(streams if level is self.levels[-1] else streams[rows])
        layers = torch.stack(kept, dim=1)  # [named, levels, B, width]
        if listening() and self.orthogonality:
            self._note_penalties(tasks)
        return {task: self.betas[task](layers[place]) for place, task in enumerate(tasks)}

    def _mixed(self, streams: Float[Tensor, "T B d"], alpha: Tensor, rows: list[int] | None) -> Tensor:
        halves = streams.unflatten(2, (2, -1)).transpose(1, 2).flatten(0, 1)  # [2 T, B, d / 2]
        wanted = alpha if rows is None else alpha.unflatten(0, (-1, 2))[rows].flatten(0, 1)
        mixed = torch.tensordot(wanted.to(halves), halves, dims=1)
        return mixed.unflatten(0, (-1, 2)).transpose(1, 2).flatten(2)

    def _note_penalties(self, tasks: list[str]) -> None:
        for task in tasks:
            for level in self.levels:
                one, other = level.layers[task].weights[0][0].chunk(2)  # [d / 2, inputs] each
                note_penalty(task, self.orthogonality * (one @ other.mT).square().sum())


class Betas(nn.Module):
    """A task's numbers for the layers; equal at the start."""

    def __init__(self, levels: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.full((levels,), 1 / levels))

    def forward(self, layers: Float[Tensor, "levels B d"]) -> Float[Tensor, "B d"]:
        return torch.tensordot(self.weights.to(layers), layers, dims=1)
