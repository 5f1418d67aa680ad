"""A token a column of a table, for architectures that let columns attend to each other."""

import math
from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from polytask.core.inputs import InputSchema
from polytask.sharing.encoders.contract import Encoder, Tokens, require, take
from polytask.sharing.encoders.tabular import PackedEmbeddings
from polytask.sharing.spec import EncoderOptions


class Columns(Encoder):
    """A number x_j becomes the token x_j w_j + b_j, a category an embedding plus its column's b_j.

    Source: Gorishniy et al. 2021, arXiv:2106.11959, the feature tokenizer of FT-Transformer.
    Departures: no [CLS] token: what reads the tokens brings its own.
    Cost: one multiply-add a number and width, and one lookup for all categorical columns.
    """

    gives = "sequence"

    class Options(EncoderOptions):
        """Attributes: width of a token; deviation of the normal start of everything."""

        widths: ClassVar[dict[str, int]] = {"width": 4}  # what reads the tokens divides them among its heads
        kind: Literal["columns"] = "columns"
        width: PositiveInt = 32
        deviation: float | None = Field(default=None, gt=0)

    def __init__(self, options: Options, schema: InputSchema) -> None:
        super().__init__()
        self.shapes = {key: shape for key, shape in schema.shapes.items() if len(shape) == 1}
        reads = [*self.shapes, *(["categorical"] if schema.cardinalities else [])]
        require("columns", schema, reads or ["categorical"])
        numbers, categories = sum(shape[0] for shape in self.shapes.values()), len(schema.cardinalities)
        self.tokens = numbers + categories
        deviation = options.deviation or 1 / math.sqrt(options.width)
        self.width, self.tokens = options.width, numbers + categories
        self.weight = nn.Parameter(torch.randn(numbers, options.width) * deviation)
        self.bias = nn.Parameter(torch.randn(numbers + categories, options.width) * deviation)
        self.embeddings: PackedEmbeddings | None = None
        if categories:
            self.embeddings = PackedEmbeddings(schema.cardinalities, [options.width] * categories, deviation)

    def forward(self, inputs: Mapping[str, Tensor]) -> Tokens:
        tokens = []
        if self.shapes:
            numbers = torch.cat([take(inputs, key, shape) for key, shape in self.shapes.items()], dim=1)
            tokens.append(numbers.unsqueeze(2) * self.weight)
        if self.embeddings is not None:
            columns = self.embeddings.columns
            embedded = self.embeddings(take(inputs, "categorical", (columns,)))
            tokens.append(embedded.unflatten(1, (columns, self.width)))
        return Tokens(torch.cat(tokens, dim=1) + self.bias)
