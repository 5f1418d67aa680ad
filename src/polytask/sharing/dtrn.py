"""Deep task-specific bottom representation: each task reads the columns its own way before its tower begins."""

from collections.abc import Iterable, Mapping
from typing import Annotated, ClassVar, Literal, cast

import torch
from jaxtyping import Float
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch.nn import functional

from polytask.core.errors import MissingInput
from polytask.sharing.contract import MakeEncoder, Sharing
from polytask.sharing.encoders.contract import Tokens
from polytask.sharing.gates import Embedding
from polytask.sharing.layers import Activation, TaskModules, dense_layers, seeded
from polytask.sharing.spec import SharingOptions
from polytask.sharing.transformer_blocks import check_heads


class DTRN(Sharing):
    """One transformer for all tasks, whose normalisations are scaled and shifted by what a hypernetwork makes of a
    task's vector; the mean of its tokens is what the task is interested in. A network of the task's own then weighs
    each column and the interest between 0 and 1, before its tower reads them end to end.

    Source: Liu et al. 2023, arXiv:2308.05996 (DTRN): its task-specific interest module (a conditional transformer,
    conditioned in its layer normalisations) and its representation refinement module.
    Departures: the paper's full text was not at hand. There is one sequence, the columns, where the paper has one for
    each type of behaviour, beside the columns; the tower stands for whatever architecture follows.
    Cost: for each named task the transformer over L tokens, (4 + 2 feedforward) L width^2 + 2 L^2 width multiply-adds a
    row, and (L + 1) width (refinement + first layer) for its networks.
    """

    reads: ClassVar[tuple[str, ...]] = ("sequence",)

    class Options(SharingOptions):
        """Attributes: hidden_sizes of a tower; heads and feedforward of the transformer, the second a multiple of the
        width; embedding, the width of a task's vector; refinement, the inner width of the network that weighs columns.
        """

        kind: Literal["dtrn"] = "dtrn"
        hidden_sizes: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (64,)
        activation: Activation = "relu"
        heads: PositiveInt = 4
        feedforward: PositiveInt = 2
        embedding: PositiveInt = 16
        refinement: PositiveInt = 16

    def __init__(self, make_encoder: MakeEncoder, tasks: Iterable[str], options: Options, seed: int = 0) -> None:
        super().__init__(make_encoder, tasks, options, seed)
        self.encoder = make_encoder()
        width, tokens = self.encoder.width, getattr(self.encoder, "tokens", None)
        if tokens is None:
            raise MissingInput("sharing 'dtrn' weighs columns: it needs an encoder with a token a column, as 'columns'")
        check_heads(f"sharing {options.kind!r}", options.heads, width)
        with seeded(seed, "transformer"):
            self.transformer = ConditionalTransformer(width, options)
        self.vectors: TaskModules[Embedding] = TaskModules()
        self.refinements: TaskModules[nn.Sequential] = TaskModules()
        self.towers: TaskModules[nn.Sequential] = TaskModules()
        fields = (tokens + 1) * width
        for task in tasks:
            with seeded(seed, "task", task):
                self.vectors[task] = Embedding(options.embedding)
                self.refinements[task] = nn.Sequential(
                    nn.Linear(fields, options.refinement), nn.ReLU(), nn.Linear(options.refinement, tokens + 1)
                )
                self.towers[task] = dense_layers(fields, options.hidden_sizes, activation=options.activation)
        self.width = options.hidden_sizes[-1]

    def condition(self, task: str) -> str:
        return f"a vector of {len(self.vectors[task].vector)}, which scales and shifts the transformer's normalisations"

    def representation(self, inputs: Mapping[str, Tensor]) -> Float[Tensor, "B L d"]:
        """The tokens of the columns, which all tasks read."""
        return cast(Tokens, self.encoder(inputs)).values

    def features(self, representation: Float[Tensor, "B L d"], tasks: list[str]) -> dict[str, Tensor]:
        outputs = {}
        for task in tasks:
            interest = self.transformer(representation, torch.stack([self.vectors[task].vector])).mean(1, keepdim=True)
            fields = torch.cat([representation, interest], dim=1)
            weights = self.refinements[task](fields.flatten(1)).sigmoid()
            outputs[task] = self.towers[task]((fields * weights.unsqueeze(2)).flatten(1))
        return outputs


class ConditionalTransformer(nn.Module):
    """Attention and a two-layer network, each on tokens whose normalisation a task's vector scales and shifts."""

    def __init__(self, width: int, options: DTRN.Options) -> None:
        super().__init__()
        self.width, self.heads = width, options.heads
        self.hypernetwork = nn.Linear(options.embedding, 4 * width)
        self.inwards, self.outwards = nn.Linear(width, 3 * width), nn.Linear(width, width)
        inner = options.feedforward * width
        self.network = nn.Sequential(nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, width))

    def forward(self, x: Float[Tensor, "B L d"], vector: Float[Tensor, "1 e"]) -> Float[Tensor, "B L d"]:
        first_scale, first_shift, scale, shift = self.hypernetwork(vector).chunk(4, dim=1)
        normed = functional.layer_norm(x, (self.width,)) * (1 + first_scale) + first_shift
        heads = self.inwards(normed).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        read = functional.scaled_dot_product_attention(*heads.unbind(0))
        x = x + self.outwards(read.transpose(1, 2).flatten(2))
        return x + self.network(functional.layer_norm(x, (self.width,)) * (1 + scale) + shift)
