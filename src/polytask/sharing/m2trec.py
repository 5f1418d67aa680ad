"""Metadata-aware multi-task transformer: all tasks read the mean of a transformer's tokens."""

from collections.abc import Iterable, Mapping
from typing import ClassVar, Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from polytask.sharing.contract import MakeEncoder, Sharing
from polytask.sharing.encoders.contract import Tokens
from polytask.sharing.layers import seeded
from polytask.sharing.transformer_blocks import TransformerOptions, blocks


class M2TRec(Sharing):
    """A transformer over the tokens, padding left out, and their mean, which every task's head reads (the next item and
    its categories, where the tokens are a session's items).

    Source: Shalaby et al. 2022, arXiv:2209.11824 (M2TRec): item metadata instead of item numbers, a transformer
    encoder, average pooling, a head for the next item and one for each of its categories.
    Departures: the tokens are what the encoder gives: those of `sequence` are a session's items, each the joined
    embeddings of its metadata, as in the paper; those of `columns` are one item's metadata, a text's its words. Layers
    normalise before, not after.
    Cost: (4 + 2 feedforward) L width^2 + 2 L^2 width multiply-adds a row and layer, for any number of tasks.
    """

    reads: ClassVar[tuple[str, ...]] = ("sequence",)

    class Options(TransformerOptions):
        """As of every transformer here."""

        kind: Literal["m2trec"] = "m2trec"

    def __init__(self, make_encoder: MakeEncoder, tasks: Iterable[str], options: Options, seed: int = 0) -> None:
        super().__init__(make_encoder, tasks, options, seed)
        self.encoder = make_encoder()
        self.width = self.encoder.width
        with seeded(seed, "transformer"):
            self.blocks = blocks(self.width, options)
            self.norm = nn.LayerNorm(self.width)

    def representation(self, inputs: Mapping[str, Tensor]) -> Float[Tensor, "B d"]:
        """The mean of the tokens that are no padding."""
        x, mask = cast(Tokens, self.encoder(inputs))
        seen = x.new_ones(x.shape[:2], dtype=torch.bool) if mask is None else mask
        allowed = seen[:, None, None, :]  # nobody reads padding
        for block in self.blocks:
            x = block(x, allowed)
        kept = self.norm(x) * seen.unsqueeze(2)
        return kept.sum(1) / seen.sum(1, keepdim=True).clamp(min=1)

    def features(self, representation: Float[Tensor, "B d"], tasks: list[str]) -> dict[str, Tensor]:
        return dict.fromkeys(tasks, representation)
