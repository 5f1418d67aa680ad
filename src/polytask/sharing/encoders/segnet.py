"""SegNet: an image down to a small map and up again, a feature vector a pixel."""

from collections.abc import Mapping
from itertools import pairwise
from typing import ClassVar, Literal

from jaxtyping import Float
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from polytask.core.errors import BadValue
from polytask.core.inputs import InputSchema
from polytask.sharing.encoders.contract import Encoder, require, take
from polytask.sharing.spec import EncoderOptions


class SegNet(Encoder):
    """Convolutions with batch normalisation and max-pooling; then the mirror image, which unpools to where each maximum
    came from.

    Source: Badrinarayanan, Kendall and Cipolla 2017 ("SegNet", arXiv:1511.00561), section 3.
    Departures: the number of convolutions and channels is free; the last layer of classes is the tasks' heads.
    Cost: sum over layers of 9 x channels in x channels out x pixels multiply-adds a row.
    """

    class Options(EncoderOptions):
        """Attributes: channels by level; convolutions of each level, on the way down and up."""

        widths: ClassVar[dict[str, int]] = {"channels": 1}
        kind: Literal["segnet"] = "segnet"
        channels: tuple[PositiveInt, ...] = Field(default=(64, 128, 256, 512, 512), min_length=1)
        convolutions: tuple[PositiveInt, ...] = Field(default=(2, 2, 3, 3, 3), min_length=1)
        key: str = "image"

    gives = "map"

    def __init__(self, options: Options, schema: InputSchema) -> None:
        super().__init__()
        require("segnet", schema, [options.key])
        self.key = options.key
        self.shape = schema.shapes[options.key]
        levels, halvings = list(zip(options.channels, options.convolutions, strict=False)), 2 ** len(options.channels)
        if len(options.channels) != len(options.convolutions):
            counts = [len(options.channels), len(options.convolutions)]
            raise BadValue("encoder 'segnet': the numbers of channels and convolutions", counts, "as many of each")
        if len(self.shape) != 3 or any(side % halvings for side in self.shape[1:]):
            allowed = f"[channels, height, width], both sides multiples of {halvings}"
            raise BadValue(f"encoder 'segnet': a row of {options.key!r}", list(self.shape), allowed)
        inputs = (self.shape[0], *options.channels[:-1])
        outputs = (options.channels[0], *options.channels[:-1])  # of each level on the way up
        self.down = nn.ModuleList(_block([n] + [c] * k) for n, (c, k) in zip(inputs, levels, strict=True))
        self.up = nn.ModuleList(_block([c] * k + [n]) for n, (c, k) in zip(outputs, levels, strict=True))
        self.pool = nn.MaxPool2d(2, return_indices=True)
        self.width = options.channels[0]

    def forward(self, inputs: Mapping[str, Tensor]) -> Float[Tensor, "B H W width"]:
        x = take(inputs, self.key, self.shape)
        places: list[Tensor] = []
        for block in self.down:
            x, index = self.pool(block(x))
            places.append(index)
        for block, index in zip(reversed(self.up), reversed(places), strict=True):
            x = block(_unpooled(x, index))
        return x.movedim(1, -1)


def _unpooled(x: Float[Tensor, "B C h w"], index: Tensor) -> Float[Tensor, "B C H W"]:
    """Each value where its maximum came from, twice as high and wide; torch's own has no deterministic form."""
    rows, channels, height, width = x.shape
    large = x.new_zeros(rows, channels, 4 * height * width).scatter(2, index.flatten(2), x.flatten(2))
    return large.view(rows, channels, 2 * height, 2 * width)


def _block(channels: list[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(channels):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers)
