"""The options of a transformer over the tokens of a row, and what its blocks are made of."""

from jaxtyping import Bool, Float
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch.nn import functional

from polytask.sharing.layers import Stack
from polytask.sharing.spec import EncoderOptions, SharingOptions
from polytask.sharing.task_tokens import Block, check_heads


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
    return Stack(block(width, options) for _ in range(options.layers))


def block(width: int, options: TransformerOptions | EncoderBlocks) -> Block:
    return Block(width, options.heads, options.feedforward, options.dropout, reader_of(options))


def reader_of(options: TransformerOptions | EncoderBlocks) -> str:
    """Whose options they are, for messages."""
    return f"{'sharing' if isinstance(options, SharingOptions) else 'encoder'} {options.kind!r}"


class Reading(nn.Module):
    """Attention of some vectors to others."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.queries, self.keys_values = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.outwards = nn.Linear(width, width)

    def forward(
        self, readers: Float[Tensor, "B M d"], read: Float[Tensor, "B L d"], mask: Bool[Tensor, "B *M L"] | None
    ) -> Float[Tensor, "B M d"]:
        """The mask says which of the others are read, by all or by each reader."""
        queries = self.queries(readers).unflatten(2, (self.heads, -1)).transpose(1, 2)
        keys, values = self.keys_values(read).unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        allowed = None if mask is None else mask[:, None, None, :] if mask.dim() == 2 else mask.unsqueeze(1)
        found = functional.scaled_dot_product_attention(queries, keys, values, attn_mask=allowed)
        return self.outwards(found.transpose(1, 2).flatten(2))


class CrossAttention(Reading):
    """Tokens to which what they read of other tokens is added, each normalised before.

    Raises: BadValue for heads that do not divide the width of a token.
    """

    def __init__(self, width: int, options: TransformerOptions) -> None:
        check_heads(reader_of(options), options.heads, width)
        super().__init__(width, options.heads)
        self.own_norm, self.source_norm = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(
        self, readers: Float[Tensor, "B M d"], read: Float[Tensor, "B L d"], mask: Bool[Tensor, "B *M L"] | None = None
    ) -> Float[Tensor, "B M d"]:
        return readers + super().forward(self.own_norm(readers), self.source_norm(read), mask)
