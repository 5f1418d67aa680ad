"""An image as a sequence of tokens, one for each of its patches."""

import math
from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from polytask.core.errors import BadValue
from polytask.core.inputs import InputSchema
from polytask.sharing.encoders.contract import Encoder, MadeOf, Tokens, require, take
from polytask.sharing.transformer_blocks import EncoderBlocks, blocks


class Patches(Encoder):
    """A linear map of each square of pixels, a learned vector of its place added, then transformer blocks, if any.

    Source: Dosovitskiy et al. 2021, arXiv:2010.11929 (ViT), its patches and the layers above them.
    Departures: no class token: what reads the tokens pools them, or brings its own.
    Cost: channels x height x width x width of a token multiply-adds a row, and the layers'.
    """

    gives = "sequence"

    class Options(EncoderBlocks):
        """Attributes: patch, pixels a side of a square; width of a token; key, the input that is the image."""

        widths: ClassVar[dict[str, int]] = {"width": 4}  # the layers divide a token among their heads
        kind: Literal["patches"] = "patches"
        patch: PositiveInt = 4
        width: PositiveInt = 64
        layers: int = Field(default=0, ge=0)
        key: str = "image"

    def __init__(self, options: Options, schema: InputSchema) -> None:
        super().__init__()
        require("patches", schema, [options.key])
        self.key, self.patch, self.width = options.key, options.patch, options.width
        self.shape = schema.shapes[options.key]
        if len(self.shape) != 3 or self.shape[1] % self.patch or self.shape[2] % self.patch:
            allowed = f"[channels, height, width], both sides multiples of patch, {self.patch}"
            raise BadValue(f"encoder 'patches': a row of {options.key!r}", list(self.shape), allowed)
        channels, height, width = self.shape
        self.tokens = (height // self.patch) * (width // self.patch)
        self.made_of = (MadeOf(self.tokens, numbers=channels * self.patch**2),)
        self.linear = nn.Linear(channels * self.patch**2, self.width)
        self.places = nn.Parameter(torch.randn(self.tokens, self.width) / math.sqrt(self.width))
        self.blocks = blocks(self.width, options)

    def forward(self, inputs: Mapping[str, Tensor]) -> Tokens:
        values = self.linear(self.raw(inputs)[0]) + self.places
        for block in self.blocks:
            values = block(values, None)
        return Tokens(values)

    def raw(self, inputs: Mapping[str, Tensor]) -> list[Tensor]:
        return [patches_of(take(inputs, self.key, self.shape), self.patch)]


def patches_of(image: Float[Tensor, "B C H W"], size: int) -> Float[Tensor, "B L n"]:
    """The pixels of each square, row after row of squares; a square's own channel after channel."""
    rows, channels, height, width = image.shape
    squares = image.reshape(rows, channels, height // size, size, width // size, size)
    return squares.permute(0, 2, 4, 1, 3, 5).reshape(rows, -1, channels * size**2)
