"""The options of a transformer over the tokens of a row, and its blocks."""

from pydantic import Field, PositiveInt

from polytask.sharing.layers import Stack
from polytask.sharing.spec import EncoderOptions, SharingOptions
from polytask.sharing.task_tokens import Block


class TransformerOptions(SharingOptions):
    """Attributes: layers; heads of the attention; feedforward, how many times as wide as a token the inner layer is;
    dropout.
    """

    layers: PositiveInt = 2
    heads: PositiveInt = 4
    feedforward: PositiveInt = 2
    dropout: float = Field(default=0.0, ge=0, lt=1)


class EncoderBlocks(EncoderOptions):
    """Attributes: as above, of an encoder, which may have no layer."""

    layers: int = Field(default=2, ge=0)
    heads: PositiveInt = 4
    feedforward: PositiveInt = 2
    dropout: float = Field(default=0.0, ge=0, lt=1)


def blocks(width: int, options: TransformerOptions | EncoderBlocks) -> Stack[Block]:
    """As many as the options say; BadValue where the heads do not divide the width of a token."""
    reader = f"{'sharing' if isinstance(options, SharingOptions) else 'encoder'} {options.kind!r}"
    numbers = options.heads, options.feedforward, options.dropout
    return Stack(Block(width, *numbers, reader) for _ in range(options.layers))
