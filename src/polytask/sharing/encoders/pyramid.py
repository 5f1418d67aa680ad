"""A small convolutional pyramid: maps of an image at half, a quarter, an eighth of its sides."""

import math
from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field, PositiveInt
from torch import Tensor, nn

from polytask.core.errors import BadValue
from polytask.core.inputs import InputSchema
from polytask.sharing.encoders.contract import Encoder, require, take
from polytask.sharing.encoders.levels import Levels
from polytask.sharing.spec import EncoderOptions


class Pyramid(Encoder):
    """Levels of 3x3 convolutions, each with group normalisation and ReLU; the first of a level halves the sides.

    Source: the bottom-up pathway of Lin et al. 2017, arXiv:1612.03144 (feature pyramid networks).
    Departures: plain convolutions instead of residual ones; group normalisation (Wu and He 2018, arXiv:1803.08494), so
    that a row's maps depend on no other row.
    Cost: sum over convolutions of 9 x channels in x channels out x pixels multiply-adds a row.
    """

    gives = "pyramid"

    class Options(EncoderOptions):
        """Attributes: channels of each level, finest first; convolutions of a level."""

        widths: ClassVar[dict[str, int]] = {"channels": 4}
        kind: Literal["pyramid"] = "pyramid"
        channels: tuple[PositiveInt, ...] = Field(default=(16, 32, 64), min_length=1)
        convolutions: PositiveInt = 2
        key: str = "image"

    def __init__(self, options: Options, schema: InputSchema) -> None:
        super().__init__()
        require("pyramid", schema, [options.key])
        self.key, self.shape = options.key, schema.shapes[options.key]
        least = 2 ** len(options.channels)
        if len(self.shape) != 3 or min(self.shape[1:]) < least:
            allowed = f"[channels, height, width], both sides at least {least}"
            raise BadValue(f"encoder 'pyramid': a row of {options.key!r}", list(self.shape), allowed)
        self.channels = options.channels
        self.strides = tuple(2 ** (level + 1) for level in range(len(options.channels)))
        inputs = (self.shape[0], *options.channels[:-1])
        self.levels = nn.ModuleList(
            nn.Sequential(
                block(before, after, stride=2), *(block(after, after) for _ in range(options.convolutions - 1))
            )
            for before, after in zip(inputs, options.channels, strict=True)
        )

    def forward(self, inputs: Mapping[str, Tensor]) -> Levels:
        x, found = take(inputs, self.key, self.shape), []
        for level in self.levels:
            x = level(x)
            found.append(x)
        return found


def block(inputs: int, outputs: int, *, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """A convolution, group normalisation and ReLU."""
    convolution = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False)
    return nn.Sequential(convolution, normalisation(outputs), nn.ReLU())


def normalisation(channels: int) -> nn.GroupNorm:
    """In as many of at most four groups as divide the channels."""
    return nn.GroupNorm(math.gcd(4, channels), channels)
