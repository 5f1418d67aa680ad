"""Modality masks: while it learns, the model sees a random part of each row's modalities; later all that there is."""

from collections.abc import Iterable
from typing import Literal

import torch
from jaxtyping import Bool
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from polytask.sharing.contract import MakeEncoder
from polytask.sharing.encoders.contract import Tokens
from polytask.sharing.layers import seeded
from polytask.sharing.modalities import modality_sizes
from polytask.sharing.sequences import SequenceSharing, mean_of
from polytask.sharing.transformer_blocks import TransformerOptions, blocks


class ModalityMasks(SequenceSharing):
    """A transformer over the visible tokens of all modalities; every task's features are their mean.

    In training each row keeps floor(visible L) tokens: shares of the modalities are drawn from a symmetric Dirichlet
    distribution, and within a modality the tokens at random. So no task can rely on one modality alone.

    Source: Bachmann et al. 2022, arXiv:2204.01678 (MultiMAE), its sampling of visible tokens across modalities.
    Departures: of its masking only: what is masked is not reconstructed by decoders of its own (a task may be); a
    modality that has fewer tokens than its share leaves the rest to the others; masked tokens are hidden from
    attention, not left out.
    Cost: one pass through the blocks for any number of tasks.
    """

    class Options(TransformerOptions):
        """Attributes: modalities, how many tokens each has, in their order (None: each token is one); visible, the
        share of tokens that a row keeps in training; concentration of the Dirichlet distribution.
        """

        kind: Literal["modality_masks"] = "modality_masks"
        modalities: tuple[PositiveInt, ...] | None = None
        visible: float = Field(default=0.5, gt=0, le=1)
        concentration: float = Field(default=1.0, gt=0)

    def __init__(self, make_encoder: MakeEncoder, tasks: Iterable[str], options: Options, seed: int = 0) -> None:
        super().__init__(make_encoder, tasks, options, seed)
        self.encoder, self.options = make_encoder(), options
        self.width = self.encoder.width
        self.sizes = modality_sizes(self.encoder, options.modalities, options.kind)
        with seeded(seed, "blocks"):
            self.blocks = blocks(self.width, options)
            self.norm = nn.LayerNorm(self.width)

    def read(self, tokens: Tokens, tasks: list[str]) -> dict[str, Tensor]:
        values, mask = tokens
        if self.training and self.options.visible < 1:
            drawn = draw_visible(len(values), self.sizes, self.options.visible, self.options.concentration)
            mask = drawn.to(values.device) if mask is None else mask & drawn.to(values.device)
        length = values.shape[1]
        allowed = torch.ones(length, length, dtype=torch.bool, device=values.device)
        if mask is not None:
            allowed = allowed & mask[:, None, None, :]
        for block in self.blocks:
            values = block(values, allowed)
        return dict.fromkeys(tasks, mean_of(self.norm(values), mask))


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
