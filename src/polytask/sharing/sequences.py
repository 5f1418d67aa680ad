"""Architectures that read tokens: where the tokens come from, and their mean."""

import math
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from polytask.core.errors import MissingInput
from polytask.sharing.contract import MakeEncoder, Sharing
from polytask.sharing.dense.decoders import decoders_for, refuse_decoder
from polytask.sharing.encoders.contract import Encoder, Tokens
from polytask.sharing.encoders.levels import Levels, packed, unpacked
from polytask.sharing.layers import seeded
from polytask.sharing.spec import SharingOptions


class SequenceSharing(Sharing):
    """One that reads tokens; a subclass has `encoder`, and `read`, abstract here, in the place of `features`."""

    reads: ClassVar[tuple[str, ...]] = ("sequence",)
    encoder: Encoder

    def __init__(self, make_encoder: MakeEncoder, tasks: Iterable[str], options: SharingOptions, seed: int = 0) -> None:
        super().__init__(make_encoder, tasks, options, seed)
        self.kind = options.kind

    def read(self, tokens: Tokens, tasks: list[str]) -> dict[str, Tensor]:
        """{task: [B, width]} from the tokens of the input."""
        raise NotImplementedError

    def representation(self, inputs: Mapping[str, Tensor]) -> Float[Tensor, "B L d"]:
        """The tokens of the input, which all tasks read; MissingInput where rows are padded."""
        values, mask = cast(Tokens, self.encoder(inputs))
        if mask is not None:
            raise MissingInput(f"sharing {self.kind!r}: rows of different length share no representation of one shape")
        return values

    def features(self, representation: Float[Tensor, "B L d"], tasks: list[str]) -> dict[str, Tensor]:
        return self.read(Tokens(representation), tasks)

    def forward(self, inputs: Mapping[str, Tensor], tasks: list[str]) -> dict[str, Tensor]:
        return self.read(cast(Tokens, self.encoder(inputs)), tasks)


class TokenSharing(SequenceSharing):
    """One that reads a sequence of tokens, or a pyramid; a subclass has `read` for the first, `decoded` for the second,
    both abstract here.

    Attributes:
        on_maps: whether the encoder gives a pyramid.
    """

    reads: ClassVar[tuple[str, ...]] = ("sequence", "pyramid")

    def __init__(self, make_encoder: MakeEncoder, tasks: Iterable[str], options: SharingOptions, seed: int = 0) -> None:
        super().__init__(make_encoder, tasks, options, seed)
        self.encoder = make_encoder()
        gives = getattr(self.encoder, "gives", "vector")
        self.on_maps = gives == "pyramid"
        if not self.on_maps:
            refuse_decoder(gives, make_encoder.decoder)

    @property
    def shapes(self) -> list[tuple[int, int, int]]:
        """Channels, height and width of the encoder's maps, where it gives any."""
        return list(cast(Any, self.encoder).shapes)

    def decoded(self, levels: Levels, tasks: list[str]) -> dict[str, Tensor]:
        """{task: what its head reads} from the maps of the pyramid."""
        raise NotImplementedError

    def representation(self, inputs: Mapping[str, Tensor]) -> Float[Tensor, "B L d"] | Float[Tensor, "B d"]:
        """The tokens of the input, which all tasks read (MissingInput where rows are padded), or all maps of its
        pyramid, one after the other."""
        return packed(cast(Levels, self.encoder(inputs))) if self.on_maps else super().representation(inputs)

    def features(self, representation: Tensor, tasks: list[str]) -> dict[str, Tensor]:
        if not self.on_maps:
            return super().features(representation, tasks)
        return self.decoded(unpacked(representation, self.shapes), tasks)

    def forward(self, inputs: Mapping[str, Tensor], tasks: list[str]) -> dict[str, Tensor]:
        if not self.on_maps:
            return super().forward(inputs, tasks)
        return self.decoded(cast(Levels, self.encoder(inputs)), tasks)


class CoarseTokens(TokenSharing):
    """One whose tokens on a pyramid are the pixels of its coarsest map, each with a learned vector of its place added;
    a task's decoder reads the map that they become beside the finer ones.

    A subclass has `read` and `read_map`, abstract here; tokens are `token_width` wide.
    """

    def __init__(self, make_encoder: MakeEncoder, tasks: Iterable[str], options: SharingOptions, seed: int = 0) -> None:
        super().__init__(make_encoder, tasks, options, seed)
        self.decoders = decoders_for(self.encoder, tasks, make_encoder.decoder, seed)
        self.token_width = self.width = self.encoder.width
        self.places = None
        if self.decoders is not None:
            self.token_width, self.width = self.decoders.shapes[-1][0], self.decoders.width
            with seeded(seed, "places"):
                self.places = Places(self.decoders.shapes[-1])

    def read_map(self, tokens: Tokens, tasks: list[str]) -> dict[str, Float[Tensor, "B L d"]]:
        """{task: the map that its decoder reads, a token a pixel}."""
        raise NotImplementedError

    def decoded(self, levels: Levels, tasks: list[str]) -> dict[str, Tensor]:
        assert self.decoders is not None
        assert self.places is not None
        *finer, coarsest = levels
        found = self.read_map(Tokens(self.places(coarsest)), tasks)
        pyramids = {task: [*finer, x.transpose(1, 2).reshape(coarsest.shape)] for task, x in found.items()}
        return self.decoders.features(self.decoders(pyramids))


class Places(nn.Module):
    """A map's pixels as tokens, each with a learned vector of its place added."""

    def __init__(self, shape: tuple[int, int, int]) -> None:
        super().__init__()
        channels, height, width = shape
        self.vectors = nn.Parameter(torch.randn(height * width, channels) / math.sqrt(channels))

    def forward(self, maps: Float[Tensor, "B d h w"]) -> Float[Tensor, "B L d"]:
        return maps.flatten(2).transpose(1, 2) + self.vectors.to(maps.dtype)


def mean_of(values: Float[Tensor, "B L d"], mask: Bool[Tensor, "B L"] | None) -> Float[Tensor, "B d"]:
    """Of the tokens that the mask leaves (None: all)."""
    if mask is None:
        return values.mean(1)
    seen = mask.unsqueeze(2).to(values.dtype)
    return (values * seen).sum(1) / seen.sum(1).clamp(min=1)
