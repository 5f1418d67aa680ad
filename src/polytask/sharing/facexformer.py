"""FaceXFormer: a token a task; tokens read each other and the image's tokens, and the image's tokens read them."""

from collections.abc import Iterable
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from polytask.sharing.contract import MakeEncoder
from polytask.sharing.dense.decoders import Decoder, output_sizes, resized
from polytask.sharing.encoders.contract import Tokens
from polytask.sharing.encoders.levels import Levels
from polytask.sharing.encoders.pyramid import block
from polytask.sharing.gates import Embedding
from polytask.sharing.layers import Stack, TaskModules, dense_layers, seeded
from polytask.sharing.sequences import Places, TokenSharing
from polytask.sharing.spec import DecoderSpec
from polytask.sharing.transformer_blocks import (
    Attention,
    CrossAttention,
    TransformerOptions,
    feedforward_network,
    reader_of,
)


class FaceXFormer(TokenSharing):
    """A task with one label a row reads its token; one whose labels are maps multiplies the image's tokens, as a map of
    the task's resolution, channel by channel with a vector that a network of its own makes of its token.

    Where the encoder gives a pyramid, the image's tokens are the pixels of all levels brought to the finest one's size
    and fused; where it gives a sequence, they are that sequence's, and every task reads its token.

    Source: Narayan et al. 2024, arXiv:2403.12960 (FaceXFormer): a learnable token a task; in each layer of the decoder
    the tasks' tokens read each other, then the face's, pass through a network, and the face's tokens read them; tasks
    read the face's tokens once more at the end; a parsing map is the product of upsampled face tokens and the task's.
    Departures: the paper's full text was not at hand; the order of the steps is that of the authors' code. A task has
    one token where their parsing has one a class: the head's row for a class, times the token's vector, is that class's
    token here. The head of a task with one label a row is the recipe's. Levels are fused by this package's decoder,
    whose sum of 1x1 convolutions is what the paper's concatenation and 1x1 convolution compute. Layers normalise
    before, not after; attention is as wide as the tokens; places are learned and added once; the map is enlarged by
    interpolation after a 3x3 convolution, in place of transposed convolutions; a task's vector starts near 1.
    Cost: for L tokens of the image and T tasks, whichever tasks are named, about 4 L width^2 + 2 L T width
    multiply-adds a row in each layer beside the fusion; a named map costs its interpolation. Tasks read each other, so
    all tokens are computed always; what makes outputs of them is computed for the named tasks only.
    """

    isolated = False

    class Options(TransformerOptions):
        """Attributes: those of the transformer."""

        kind: Literal["facexformer"] = "facexformer"

    def __init__(self, make_encoder: MakeEncoder, tasks: Iterable[str], options: Options, seed: int = 0) -> None:
        super().__init__(make_encoder, tasks, options, seed)
        self.tasks = list(tasks)
        spec = make_encoder.decoder or DecoderSpec()
        self.sizes = output_sizes(self.encoder, tasks, spec) if self.on_maps else {}
        self.width = spec.width if self.on_maps else self.encoder.width
        self.tokens: TaskModules[Embedding] = TaskModules()
        self.vectors: TaskModules[nn.Sequential] = TaskModules()
        for task in self.tasks:
            with seeded(seed, "token", task):
                self.tokens[task] = Embedding(self.width)
        for task in self.sizes:
            with seeded(seed, "vector", task):
                last = nn.Linear(self.width, self.width)
                nn.init.ones_(last.bias)
                self.vectors[task] = nn.Sequential(*dense_layers(self.width, (self.width, self.width)), last)
        with seeded(seed, "layers"):
            self.layers = Stack(TwoWay(self.width, options) for _ in range(options.layers))
            self.last = CrossAttention(self.width, options.heads, reader_of(options))
            self.norm = nn.LayerNorm(self.width)
        if self.on_maps:
            with seeded(seed, "maps"):
                self.fusion = Decoder([shape[0] for shape in self.shapes], self.width)
                self.places = Places((self.width, *self.shapes[0][1:]))
        if self.sizes:
            with seeded(seed, "enlarging"):
                self.enlarging = block(self.width, self.width)

    @property
    def map_sizes(self) -> dict[str, tuple[int, int]]:
        return self.sizes

    def condition(self, task: str) -> str:
        return f"a token of {self.width} that the input's read, and the other tasks'"

    def read(self, tokens: Tokens, tasks: list[str]) -> dict[str, Tensor]:
        return self._read(tokens, tasks)[0]

    def decoded(self, levels: Levels, tasks: list[str]) -> dict[str, Tensor]:
        fused, _ = self.fusion(levels)
        found, values = self._read(Tokens(self.places(fused)), tasks)
        named = [task for task in tasks if task in self.sizes]
        if named:
            shared = self.enlarging(values.transpose(1, 2).reshape(fused.shape))
        for task in named:
            own = shared * self.vectors[task](found[task])[:, :, None, None]
            found[task] = resized(own, self.sizes[task]).movedim(1, -1)
        return found

    def _read(self, tokens: Tokens, tasks: list[str]) -> tuple[dict[str, Tensor], Float[Tensor, "B L d"]]:
        """What the named tasks' tokens and the input's have become."""
        values, mask = tokens
        own = torch.stack([self.tokens[task].vector for task in self.tasks]).to(values.dtype)
        own = own.expand(values.shape[0], -1, -1)
        for layer in self.layers:
            own, values = layer(own, values, mask)  # nobody reads padding
        named = torch.stack([own[:, self.tasks.index(task)] for task in tasks], dim=1)
        return dict(zip(tasks, self.norm(self.last(named, values, mask)).unbind(1), strict=True)), values


class TwoWay(Attention):
    """Tasks' tokens read each other, then the input's; each passes through a network; the input's tokens read them."""

    def __init__(self, width: int, options: TransformerOptions) -> None:
        super().__init__(width, options.heads, options.dropout, reader_of(options))
        self.reading = CrossAttention(width, options.heads, reader_of(options))
        self.network_norm = nn.LayerNorm(width)
        self.network = feedforward_network(width, options.feedforward, options.dropout)
        self.answering = CrossAttention(width, options.heads, reader_of(options))

    def forward(
        self, own: Float[Tensor, "B T d"], values: Float[Tensor, "B L d"], mask: Bool[Tensor, "B L"] | None
    ) -> tuple[Float[Tensor, "B T d"], Float[Tensor, "B L d"]]:
        own = self.reading(self.read(own), values, mask)
        own = own + self.network(self.network_norm(own))
        return own, self.answering(values, own)
