"""Modality masks: while it learns, the model sees a random part of each row's modalities; later all that there is."""

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from polytask.sharing.contract import MakeEncoder
from polytask.sharing.encoders.contract import Tokens
from polytask.sharing.layers import seeded
from polytask.sharing.modalities import modality_sizes
from polytask.sharing.reconstruction import Masked, Reconstruction, ReconstructionOptions
from polytask.sharing.sequences import SequenceSharing, mean_of
from polytask.sharing.tape import listening, note
from polytask.sharing.transformer_blocks import TransformerOptions, blocks


class ModalityMasks(SequenceSharing):
    """A transformer over the visible tokens of all modalities; every task's features are their mean.

    In training each row keeps floor(visible L) tokens: shares of the modalities are drawn from a symmetric Dirichlet
    distribution, and within a modality the tokens at random. So no task can rely on one modality alone. Decoders beside
    the model, which are trained with it and not saved, make the masked tokens' inputs again: see `reconstruction`.

    Source: Bachmann et al. 2022, arXiv:2204.01678 (MultiMAE): visible tokens sampled across modalities, a transformer
    over all of them, and the reconstruction of what is masked.
    Departures: the tasks are learned at the same time, by heads on the mean, where the paper's come afterwards; a
    modality that has fewer tokens than its share leaves the rest to the others; masked tokens are hidden from
    attention, not left out. Of the decoders, see there.
    Cost: one pass through the blocks for any number of tasks; in training that of the decoders besides.
    """

    class Options(TransformerOptions):
        """Attributes: modalities, how many tokens each has, in their order (None: each token is one); visible, the
        share of tokens that a row keeps in training; concentration of the Dirichlet distribution; reconstruct: the
        decoders.
        """

        kind: Literal["modality_masks"] = "modality_masks"
        modalities: tuple[PositiveInt, ...] | None = None
        visible: float = Field(default=0.5, gt=0, le=1)
        concentration: float = Field(default=1.0, gt=0)
        reconstruct: ReconstructionOptions = ReconstructionOptions()

    def __init__(self, make_encoder: MakeEncoder, tasks: Iterable[str], options: Options, seed: int = 0) -> None:
        super().__init__(make_encoder, tasks, options, seed)
        self.encoder, self.options = make_encoder(), options
        self.width = self.encoder.width
        self.sizes = modality_sizes(self.encoder, options.modalities, options.kind)
        with seeded(seed, "blocks"):
            self.blocks = blocks(self.width, options)
            self.norm = nn.LayerNorm(self.width)

    @property
    def reconstructs(self) -> bool:
        return self.options.reconstruct.strength > 0 and self.options.visible < 1

    def beside(self, seed: int) -> Reconstruction | None:
        if not self.reconstructs:
            return None
        reader = f"sharing {self.options.kind!r}"
        return Reconstruction(self.encoder, self.sizes, self.options.reconstruct, seed, reader)

    def representation(self, inputs: Mapping[str, Tensor]) -> Float[Tensor, "B L d"]:
        self._note_raw(inputs)
        return super().representation(inputs)

    def forward(self, inputs: Mapping[str, Tensor], tasks: list[str]) -> dict[str, Tensor]:
        self._note_raw(inputs)
        return super().forward(inputs, tasks)

    def _note_raw(self, inputs: Mapping[str, Tensor]) -> None:
        if self.training and self.reconstructs and listening() and hasattr(self.encoder, "raw"):
            encoder: Any = self.encoder
            note("raw", encoder.raw(inputs))

    def read(self, tokens: Tokens, tasks: list[str]) -> dict[str, Tensor]:
        values, mask = tokens
        there = torch.ones(values.shape[:2], dtype=torch.bool, device=values.device) if mask is None else mask
        masks = self.training and self.options.visible < 1
        if masks:
            drawn = draw_visible(len(values), self.sizes, self.options.visible, self.options.concentration)
            mask = there & drawn.to(values.device)
        length = values.shape[1]
        allowed = torch.ones(length, length, dtype=torch.bool, device=values.device)
        if mask is not None:
            allowed = allowed & mask[:, None, None, :]
        for block in self.blocks:
            values = block(values, allowed)
        values = self.norm(values)
        if masks and mask is not None:
            note("masked", Masked(values, mask, there & ~mask))
        return dict.fromkeys(tasks, mean_of(values, mask))


def draw_visible(rows: int, sizes: tuple[int, ...], visible: float, concentration: float) -> Bool[Tensor, "B L"]:
    """Which tokens each row keeps, from torch's generator as dropout is; at least one.

    Each token gets a number: its rank within its modality, at random, over the modality's share. The tokens with the
    smallest numbers stay, so a modality's tokens are kept in proportion to its share as long as there are any.
    """
    total = sum(sizes)
    keep = max(1, int(visible * total))
    share = torch.distributions.Dirichlet(torch.full((len(sizes),), concentration)).sample((rows,))
    order = []
    for place, size in enumerate(sizes):
        rank = torch.rand(rows, size).argsort(1).argsort(1)
        order.append((rank + 0.5) / share[:, place : place + 1].clamp(min=1e-9))
    chosen = torch.cat(order, dim=1).argsort(dim=1, stable=True)[:, :keep]
    return torch.zeros(rows, total, dtype=torch.bool).scatter(1, chosen, True)
