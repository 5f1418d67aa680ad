"""Adaptive pattern extraction: patterns of all columns, of which each task selects by a vector of its own."""

import math
from collections.abc import Iterable, Mapping
from typing import Annotated, ClassVar, Literal, cast

import torch
from jaxtyping import Bool, Float
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from polytask.core.errors import MissingInput
from polytask.sharing.contract import MakeEncoder, Sharing
from polytask.sharing.encoders.contract import Tokens
from polytask.sharing.gates import Embedding
from polytask.sharing.layers import Activation, Stack, TaskModules, dense_layers, seeded
from polytask.sharing.spec import SharingOptions
from polytask.sharing.transformer_blocks import Reading, check_heads


class APEM(Sharing):
    """Layers for all tasks: a few learned vectors read the tokens, the tokens read those (set attention), and each
    channel is weighed between 0 and 1 by what its mean over the tokens says (squeeze and excitation). A task's vector
    then weighs the tokens, and its tower reads their weighted sum.

    Source: Tao et al. 2023, arXiv:2301.02494 (APEM): its group transformer with set attention and squeeze and
    excitation, and its pattern selector by task-indicator vectors.
    Departures: the paper's full text was not at hand, only its abstract and others' summaries: set attention is that of
    Lee et al. 2019 (arXiv:1810.00825) with induced points, excitation that of Hu et al. 2018 (arXiv:1709.01507), the
    selector a softmax over the tokens.
    Cost: for all tasks (4 points + 4 L) width^2 + 4 points L width multiply-adds a row and layer; for each named task
    L width for its selection, and its tower.
    """

    reads: ClassVar[tuple[str, ...]] = ("sequence",)

    class Options(SharingOptions):
        """Attributes: layers; points, how many vectors read the tokens; heads of the attention; reduction, by how much
        the excitation's inner layer is narrower than a token; hidden_sizes of a tower.
        """

        kind: Literal["apem"] = "apem"
        layers: PositiveInt = 1
        points: PositiveInt = 8
        heads: PositiveInt = 4
        reduction: PositiveInt = 4
        hidden_sizes: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (64,)
        activation: Activation = "relu"

    def __init__(self, make_encoder: MakeEncoder, tasks: Iterable[str], options: Options, seed: int = 0) -> None:
        super().__init__(make_encoder, tasks, options, seed)
        self.encoder = make_encoder()
        width = self.encoder.width
        check_heads(f"sharing {options.kind!r}", options.heads, width)
        with seeded(seed, "patterns"):
            self.layers: Stack[SetLayer] = Stack(SetLayer(width, options) for _ in range(options.layers))
            self.keys = nn.Linear(width, width)
        self.indicators: TaskModules[Embedding] = TaskModules()
        self.towers: TaskModules[nn.Sequential] = TaskModules()
        for task in tasks:
            with seeded(seed, "task", task):
                self.indicators[task] = Embedding(width)
                self.towers[task] = dense_layers(width, options.hidden_sizes, activation=options.activation)
        self.width = options.hidden_sizes[-1]

    def condition(self, task: str) -> str:
        return f"a vector of {len(self.indicators[task].vector)}, which weighs the tokens"

    def representation(self, inputs: Mapping[str, Tensor]) -> Float[Tensor, "B L d"]:
        """The patterns, which all tasks select from; MissingInput where rows are padded."""
        patterns, mask = self._patterns(inputs)
        if mask is not None:
            raise MissingInput("sharing 'apem': rows of different length share no representation of one shape")
        return patterns

    def features(self, representation: Float[Tensor, "B L d"], tasks: list[str]) -> dict[str, Tensor]:
        return self._selected(Tokens(representation), tasks)

    def forward(self, inputs: Mapping[str, Tensor], tasks: list[str]) -> dict[str, Tensor]:
        return self._selected(self._patterns(inputs), tasks)

    def _patterns(self, inputs: Mapping[str, Tensor]) -> Tokens:
        x, mask = cast(Tokens, self.encoder(inputs))
        for layer in self.layers:
            x = layer(x, mask)
        return Tokens(x, mask)

    def _selected(self, tokens: Tokens, tasks: list[str]) -> dict[str, Tensor]:
        values, mask = tokens
        keys, outputs = self.keys(values), {}
        for task in tasks:
            scores = keys @ self.indicators[task].vector.to(keys.dtype) / math.sqrt(keys.shape[-1])
            weights = (scores if mask is None else scores.masked_fill(~mask, -torch.inf)).softmax(1)
            outputs[task] = self.towers[task]((weights.unsqueeze(2).to(values.dtype) * values).sum(1))
        return outputs


class SetLayer(nn.Module):
    """Tokens that read each other by way of a few points, then channels weighed by their means."""

    def __init__(self, width: int, options: APEM.Options) -> None:
        super().__init__()
        self.points = nn.Parameter(torch.randn(options.points, width) / math.sqrt(width))
        self.norm, self.point_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.gather, self.spread = Reading(width, options.heads), Reading(width, options.heads)
        inner = max(width // options.reduction, 1)
        self.excitation = nn.Sequential(nn.Linear(width, inner), nn.ReLU(), nn.Linear(inner, width))

    def forward(self, x: Float[Tensor, "B L d"], mask: Bool[Tensor, "B L"] | None) -> Float[Tensor, "B L d"]:
        normed = self.norm(x)
        points = x.new_zeros(x.shape[0], 1, 1) + self.points.to(x.dtype)
        points = points + self.gather(points, normed, mask)
        x = x + self.spread(normed, self.point_norm(points), None)
        if mask is None:
            mean = x.mean(1)
        else:
            mean = (x * mask.unsqueeze(2)).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
        return x * self.excitation(mean).sigmoid().unsqueeze(1)
