"""Architectures that read a sequence of tokens: where the tokens come from, and their mean."""

from collections.abc import Iterable, Mapping
from typing import ClassVar, cast

from jaxtyping import Bool, Float
from torch import Tensor

from polytask.core.errors import MissingInput
from polytask.sharing.contract import MakeEncoder, Sharing
from polytask.sharing.encoders.contract import Encoder, Tokens
from polytask.sharing.spec import SharingOptions


class SequenceSharing(Sharing):
    """One that reads tokens; a subclass has `encoder`, and `read` in the place of `features`."""

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


def mean_of(values: Float[Tensor, "B L d"], mask: Bool[Tensor, "B L"] | None) -> Float[Tensor, "B d"]:
    """Of the tokens that the mask leaves (None: all)."""
    if mask is None:
        return values.mean(1)
    seen = mask.unsqueeze(2).to(values.dtype)
    return (values * seen).sum(1) / seen.sum(1).clamp(min=1)
