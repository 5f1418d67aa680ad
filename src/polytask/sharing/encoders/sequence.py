"""A token an element of a row's sequence, as the items of a session."""

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from polytask.core.errors import BadValue
from polytask.core.inputs import InputSchema
from polytask.sharing.encoders.contract import Encoder, Tokens, require, take
from polytask.sharing.encoders.tabular import PackedEmbeddings
from polytask.sharing.spec import EncoderOptions


class Sequence(Encoder):
    """An element is the embeddings of what its columns say (an item, its category, its brand) end to end, through a
    linear layer to the width of a token, plus a learned vector of its place.

    Source: Shalaby et al. 2022, arXiv:2209.11824 (M2TRec): a session's items as the joined embeddings of their
    metadata.
    Departures: the paper's text was not at hand; embeddings have one width, and places count from the first element.
    Cost: a lookup for all columns, and columns x embedding x width multiply-adds an element.
    """

    gives = "sequence"

    class Options(EncoderOptions):
        """Attributes: width of a token; embedding, the width of each column's; places, whether elements know where they
        stand; deviation of the normal start of embeddings and places.
        """

        widths: ClassVar[dict[str, int]] = {"width": 4, "embedding": 1}
        kind: Literal["sequence"] = "sequence"
        width: PositiveInt = 32
        embedding: PositiveInt = 16
        places: bool = True
        deviation: float = Field(default=0.1, gt=0)

    def __init__(self, options: Options, schema: InputSchema) -> None:
        super().__init__()
        require("sequence", schema, ["sequence"])
        self.width, self.longest, columns = options.width, schema.longest, len(schema.sequences)
        self.embeddings = PackedEmbeddings(
            schema.sequences, [options.embedding] * columns, options.deviation, key="sequence"
        )
        self.projection = nn.Linear(self.embeddings.width, options.width)
        self.places: nn.Parameter | None = None
        if options.places:
            self.places = nn.Parameter(torch.randn(schema.longest, options.width) * options.deviation)

    def forward(self, inputs: Mapping[str, Tensor]) -> Tokens:
        indices = take(inputs, "sequence")
        columns = self.embeddings.columns
        if indices.dim() != 3 or indices.shape[2] != columns or indices.shape[1] > self.longest:
            allowed = f"[rows, up to {self.longest} elements, {columns}]"
            raise BadValue("input 'sequence'", list(indices.shape), allowed)
        values = self.projection(self.embeddings(indices.flatten(0, 1))).unflatten(0, indices.shape[:2])
        if self.places is not None:
            values = values + self.places[: indices.shape[1]]
        return Tokens(values, indices[:, :, 0] != 0)
