"""Decoders that make masked tokens' inputs again from the visible ones: what a masked autoencoder learns by."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch.nn import functional

from polytask.core.errors import MissingInput
from polytask.core.validation import Strict
from polytask.sharing.encoders.contract import Encoder, MadeOf
from polytask.sharing.layers import Stack, seeded
from polytask.sharing.tape import note_penalty, noted
from polytask.sharing.transformer_blocks import Block, CrossAttention, feedforward_network


class ReconstructionOptions(Strict):
    """Attributes: strength of the term (0: none); width of the decoders; layers, the blocks of each; heads of their
    attention.
    """

    strength: float = Field(default=1.0, ge=0)
    width: PositiveInt = 32
    layers: int = Field(default=1, ge=0)
    heads: PositiveInt = 4


class Masked(NamedTuple):
    """What a pass leaves: its tokens' values, which were visible, and which were hidden though they are there."""

    values: Float[Tensor, "B L d"]
    visible: Bool[Tensor, "B L"]
    hidden: Bool[Tensor, "B L"]


class Reconstruction(nn.Module):
    """A decoder a modality, whose loss is over masked tokens only; the term is the mean over the modalities.

    A token of numbers has their mean squared error, one of a category its cross-entropy; a modality has the mean over
    its masked tokens of the batch. Each task's loss gets an equal share of strength times the term.

    Source: Bachmann et al. 2022, arXiv:2204.01678 (MultiMAE), its decoders: visible tokens in their places and a
    learned one for each masked, which read all visible ones by cross-attention, a two-layer network, then blocks.
    Departures: losses of modalities are averaged, where the paper adds them up, so that their number does not change
    the strength; pixels are not normalised patch by patch; the paper's full text was not at hand.
    Cost: about (6 + 4 (1 + layers)) L width^2 multiply-adds a row, nothing once training is over.

    Args:
        encoder: of the tokens.
        sizes: of the modalities, in tokens.
        options: of the decoders.
        seed: of the start.
        reader: whose they are, for messages.
    """

    def __init__(
        self, encoder: Encoder, sizes: Sequence[int], options: ReconstructionOptions, seed: int, reader: str
    ) -> None:
        super().__init__()
        made_of: Sequence[MadeOf] | None = getattr(encoder, "made_of", None)
        if made_of is None:
            found = f"{type(encoder).__name__}, which does not say what its tokens are made of"
            raise MissingInput(f"{reader}: the encoder is {found} (made_of, raw); say reconstruct: {{strength: 0}}")
        self.strength = options.strength
        with seeded(seed, "reconstruction"):
            self.visible = nn.Linear(encoder.width, options.width)
        self.decoders: Stack[Decoder] = Stack()
        first = 0
        for number, size in enumerate(sizes):
            with seeded(seed, "reconstruction", number):
                part = slice(first, first + size)
                self.decoders.append(Decoder(part, made_of, options, f"{reader}: reconstruct"))
            first += size

    def forward(self, outputs: Mapping[str, Tensor]) -> None:
        """Notes the tasks' terms, where the pass has masked tokens."""
        masked, raw = noted("masked"), noted("raw")
        if masked is None or raw is None or not outputs:
            return
        share = self.strength * self.loss(masked, raw) / len(outputs)
        for task in outputs:
            note_penalty(task, share)

    def loss(self, masked: Masked, raw: Sequence[Tensor]) -> Float[Tensor, ""]:
        seen = self.visible(masked.values)
        losses = [decoder(seen, masked, raw) for decoder in self.decoders]
        return torch.stack(losses).mean()


class Decoder(nn.Module):
    """Of one modality: the tokens in `part`."""

    def __init__(self, part: slice, made_of: Sequence[MadeOf], options: ReconstructionOptions, reader: str) -> None:
        super().__init__()
        self.part, size = part, part.stop - part.start
        self.hidden = nn.Parameter(torch.randn(options.width) / options.width**0.5)
        self.places = nn.Parameter(torch.randn(size, options.width) / options.width**0.5)
        self.reading = ReadingBlock(options.width, options.heads, reader)
        self.blocks: Stack[Block] = Stack(
            Block(options.width, options.heads, 2, 0.0, reader) for _ in range(options.layers)
        )
        self.runs = runs_within(part, made_of)
        self.made: Stack[nn.Linear] = Stack(nn.Linear(options.width, run.outputs) for run in self.runs)

    def forward(self, seen: Float[Tensor, "B L w"], masked: Masked, raw: Sequence[Tensor]) -> Float[Tensor, ""]:
        """The mean loss over the modality's masked tokens; 0 where there is none."""
        visible, hidden = masked.visible[:, self.part], masked.hidden[:, self.part]
        x = torch.where(visible.unsqueeze(2), seen[:, self.part], self.hidden.to(seen.dtype)) + self.places
        x = self.reading(x, seen, masked.visible)
        there = (visible | hidden)[:, None, None, :]
        for block in self.blocks:
            x = block(x, there)
        losses = [
            token_losses(linear(x[:, run.here]), raw[run.of][:, run.there], run.is_category)
            for run, linear in zip(self.runs, self.made, strict=True)
        ]
        return (torch.cat(losses, dim=1) * hidden).sum() / hidden.sum().clamp(min=1)


class ReadingBlock(CrossAttention):
    """What tokens read of others is added to them, then what a two-layer network makes of that."""

    def __init__(self, width: int, heads: int, reader: str) -> None:
        super().__init__(width, heads, reader)
        self.network_norm = nn.LayerNorm(width)
        self.network = feedforward_network(width, 2, 0.0)

    def forward(
        self, readers: Float[Tensor, "B n w"], read: Float[Tensor, "B L w"], mask: Bool[Tensor, "B L"] | None = None
    ) -> Float[Tensor, "B n w"]:
        x = super().forward(readers, read, mask)
        return x + self.network(self.network_norm(x))


class Run(NamedTuple):
    """Neighbouring tokens of a modality that are made of the same: where they are in it, and where their raw inputs."""

    here: slice
    of: int
    there: slice
    outputs: int
    is_category: bool


def runs_within(part: slice, made_of: Sequence[MadeOf]) -> list[Run]:
    """The runs of the tokens in `part`, in order."""
    found, first = [], 0
    for number, run in enumerate(made_of):
        start, stop = max(part.start, first), min(part.stop, first + run.tokens)
        if start < stop:
            here, there = slice(start - part.start, stop - part.start), slice(start - first, stop - first)
            found.append(Run(here, number, there, run.classes or run.numbers, run.classes > 0))
        first += run.tokens
    return found


def token_losses(made: Float[Tensor, "B n c"], raw: Tensor, is_category: bool) -> Float[Tensor, "B n"]:
    """The mean squared error of each token's numbers, or the cross-entropy of its category in nats."""
    made = made if made.dtype == torch.float64 else made.float()
    if is_category:
        return functional.cross_entropy(made.transpose(1, 2), raw, reduction="none")
    return (made - raw).square().mean(2)
