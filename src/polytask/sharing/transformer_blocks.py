"""The options of a transformer over the tokens of a row, and what its blocks are made of."""

from jaxtyping import Bool, Float
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch.nn import functional

from polytask.core.errors import BadValue
from polytask.sharing.layers import Stack
from polytask.sharing.spec import EncoderOptions, SharingOptions


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


def check_heads(reader: str, heads: int, width: int) -> None:
    """BadValue unless the heads divide the width of a token; `reader` is who has them, for the message."""
    if width % heads:
        raise BadValue(f"{reader}: heads", heads, f"a divisor of the width of a token, {width}")


class Attention(nn.Module):
    """Tokens to which what they read of each other is added.

    Raises: BadValue for heads that do not divide the width of a token.
    """

    def __init__(self, width: int, heads: int, dropout: float, reader: str) -> None:
        super().__init__()
        check_heads(reader, heads, width)
        self.heads, self.dropout = heads, dropout
        self.attention_norm = nn.LayerNorm(width)
        self.inwards, self.outwards = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def read(self, x: Float[Tensor, "B L d"], allowed: Bool[Tensor, "*B L L"] | None = None) -> Float[Tensor, "B L d"]:
        heads = self.inwards(self.attention_norm(x)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        dropout = self.dropout if self.training else 0.0
        read = functional.scaled_dot_product_attention(*heads.unbind(0), attn_mask=allowed, dropout_p=dropout)
        return x + self.outwards(read.transpose(1, 2).flatten(2))


class Block(Attention):
    """Attention and a two-layer network, each on normalised tokens and added to them."""

    def __init__(self, width: int, heads: int, feedforward: int, dropout: float, reader: str) -> None:
        super().__init__(width, heads, dropout, reader)
        self.network_norm = nn.LayerNorm(width)
        self.network = feedforward_network(width, feedforward, dropout)

    def forward(self, x: Float[Tensor, "B L d"], allowed: Bool[Tensor, "*B L L"] | None) -> Float[Tensor, "B L d"]:
        x = self.read(x, allowed)
        return x + self.network(self.network_norm(x))


def feedforward_network(width: int, times: int, dropout: float) -> nn.Sequential:
    """Two layers, the inner one `times` as wide as a token."""
    return nn.Sequential(
        nn.Linear(width, times * width), nn.GELU(), nn.Dropout(dropout), nn.Linear(times * width, width)
    )


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

    def __init__(self, width: int, heads: int, reader: str) -> None:
        check_heads(reader, heads, width)
        super().__init__(width, heads)
        self.own_norm, self.source_norm = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(
        self, readers: Float[Tensor, "B M d"], read: Float[Tensor, "B L d"], mask: Bool[Tensor, "B *M L"] | None = None
    ) -> Float[Tensor, "B M d"]:
        return readers + super().forward(self.own_norm(readers), self.source_norm(read), mask)
