"""A transformer over the tokens that stems give: the trunk of sources that are read apart and understood together."""

from collections.abc import Mapping
from typing import ClassVar, Literal

from jaxtyping import Float
from torch import Tensor, nn

from polytask.core.inputs import InputSchema
from polytask.sharing.encoders.contract import Encoder, Tokens, require, take
from polytask.sharing.sequences import mean_of
from polytask.sharing.spec import EncoderOptions
from polytask.sharing.transformer_blocks import EncoderBlocks, blocks


class Blocks(Encoder):
    """Tokens -> transformer blocks -> the mean of what has become of them, or all of them.

    Source: Vaswani et al. 2017, arXiv:1706.03762, the encoder's layers.
    Departures: layers normalise before, not after; nothing tells a token its place, as its stem has done that.
    Cost: (4 + 2 feedforward) L width^2 + 2 L^2 width multiply-adds a row and layer.
    """

    class Options(EncoderBlocks):
        """Attributes: pooling: mean of the tokens that are no padding, or none: a sequence."""

        widths: ClassVar[dict[str, int]] = {}
        kind: Literal["blocks"] = "blocks"
        pooling: Literal["mean", "none"] = "mean"

    def __init__(self, options: Options, schema: InputSchema) -> None:
        super().__init__()
        require("blocks", schema, ["tokens"])
        self.width, self.pooling = schema.tokens, options.pooling
        self.gives = "vector" if options.pooling == "mean" else "sequence"
        self.blocks = blocks(self.width, options)
        self.norm = nn.LayerNorm(self.width) if options.layers else nn.Identity()

    def forward(self, inputs: Mapping[str, Tensor]) -> Float[Tensor, "B width"] | Tokens:
        values, mask = take(inputs, "tokens"), inputs.get("tokens_mask")
        allowed = None if mask is None else mask[:, None, None, :]  # nobody reads padding
        for block in self.blocks:
            values = block(values, allowed)
        values = self.norm(values)
        return Tokens(values, mask) if self.pooling == "none" else mean_of(values, mask)


def as_they_are() -> EncoderOptions:
    """Options of a trunk that leaves the tokens to what reads it."""
    return Blocks.Options(layers=0, pooling="none")
