"""A small convolutional network for small images."""

from collections.abc import Mapping
from typing import ClassVar, Literal

from jaxtyping import Float
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from polytask.core.errors import BadValue
from polytask.core.inputs import InputSchema
from polytask.sharing.encoders.contract import Encoder, require, take
from polytask.sharing.layers import dense_layers
from polytask.sharing.spec import EncoderOptions


class Conv(Encoder):
    """3x3 convolutions, each with normalisation, ReLU and 2x2 max-pooling, then a linear layer on all positions.

    Source: after LeCun et al. 1998 ("Gradient-based learning applied to document recognition"), as used on MultiMNIST.
    Departures: padded 3x3 kernels; group normalisation (Wu and He 2018, arXiv:1803.08494) by default, so that a row's
    features depend on no other row and a batch may be split over processes; the linear layer sees every position, not
    their mean, because where a digit stands can decide which task it belongs to.
    Cost: sum over layers of 9 x channels in x channels out x positions multiply-adds a row.
    """

    class Options(EncoderOptions):
        """Attributes: channels of each convolution; groups of the group normalisation; width of the features."""

        widths: ClassVar[dict[str, int]] = {"channels": 4, "width": 1}  # four groups are normalised
        kind: Literal["conv"] = "conv"
        channels: tuple[PositiveInt, ...] = Field(default=(16, 32), min_length=1)
        width: PositiveInt = 64
        normalization: Literal["group", "batch", "none"] = "group"
        groups: PositiveInt = 4
        dropout: float = Field(default=0.0, ge=0, lt=1)
        key: str = "image"

    def __init__(self, options: Options, schema: InputSchema) -> None:
        super().__init__()
        require("conv", schema, [options.key])
        self.key = options.key
        self.shape = schema.shapes[options.key]
        if len(self.shape) != 3:
            raise BadValue(f"encoder 'conv': a row of {options.key!r}", list(self.shape), "[channels, height, width]")
        channels, height, width = self.shape
        self.convolutions = nn.Sequential()
        for outputs in options.channels:
            if min(height, width) < 2:
                size = f"{options.channels} halve {list(self.shape[1:])} below one pixel"
                raise BadValue("encoder 'conv': channels", size, "at most log2 of the smaller side many layers")
            self.convolutions.append(nn.Conv2d(channels, outputs, kernel_size=3, padding=1))
            if options.normalization != "none":
                self.convolutions.append(_normalization(options, outputs))
            self.convolutions.extend([nn.ReLU(), nn.MaxPool2d(2)])
            channels, height, width = outputs, height // 2, width // 2
        self.layers = dense_layers(channels * height * width, (options.width,), dropout=options.dropout)
        self.width = options.width

    def forward(self, inputs: Mapping[str, Tensor]) -> Float[Tensor, "B width"]:
        image = take(inputs, self.key, self.shape)
        return self.layers(self.convolutions(image).flatten(1))


def _normalization(options: Conv.Options, channels: int) -> nn.Module:
    if options.normalization == "batch":
        return nn.BatchNorm2d(channels)
    if channels % options.groups:
        raise BadValue("encoder 'conv': groups", options.groups, f"a divisor of each of channels {options.channels}")
    return nn.GroupNorm(options.groups, channels)
