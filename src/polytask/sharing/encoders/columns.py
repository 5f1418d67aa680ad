"""A token a column of a table, for architectures that let columns attend to each other."""

import math
from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from polytask.core.inputs import InputSchema
from polytask.sharing.encoders.contract import Encoder, Tokens, require, take
from polytask.sharing.encoders.tabular import PackedEmbeddings
from polytask.sharing.spec import EncoderOptions

MISSING = 1
"""The index of a missing category, see `polytask.core.inputs`."""


class Columns(Encoder):
    """A number x_j becomes the token x_j w_j + b_j, a category an embedding plus its column's b_j.

    Source: Gorishniy et al. 2021, arXiv:2106.11959, the feature tokenizer of FT-Transformer.
    Departures: no [CLS] token: what reads the tokens brings its own. The paper's values are all there; here a missing
    one is shown as the data give it (the mean beside a 0/1 token; a category of its own) or hidden as padding is.
    Cost: one multiply-add a number and width, and one lookup for all categorical columns.
    """

    gives = "sequence"

    class Options(EncoderOptions):
        """Attributes: width of a token; deviation of the normal start of everything; missing: values are shown or
        hidden; hidden ones leave rows of different length.
        """

        widths: ClassVar[dict[str, int]] = {"width": 4}  # what reads the tokens divides them among its heads
        kind: Literal["columns"] = "columns"
        width: PositiveInt = 32
        deviation: float | None = Field(default=None, gt=0)
        missing: Literal["shown", "hidden"] = "shown"

    def __init__(self, options: Options, schema: InputSchema) -> None:
        super().__init__()
        self.shapes = {key: shape for key, shape in schema.shapes.items() if len(shape) == 1}
        reads = [*self.shapes, *(["categorical"] if schema.cardinalities else [])]
        require("columns", schema, reads or ["categorical"])
        self.numbers = Numbers(schema, list(self.shapes)) if options.missing == "hidden" else None
        numbers = sum(shape[0] for shape in self.shapes.values()) if self.numbers is None else len(self.numbers.values)
        categories = len(schema.cardinalities)
        deviation = options.deviation or 1 / math.sqrt(options.width)
        self.width, self.tokens = options.width, numbers + categories
        self.weight = nn.Parameter(torch.randn(numbers, options.width) * deviation)
        self.bias = nn.Parameter(torch.randn(numbers + categories, options.width) * deviation)
        self.embeddings: PackedEmbeddings | None = None
        if categories:
            self.embeddings = PackedEmbeddings(schema.cardinalities, [options.width] * categories, deviation)

    def forward(self, inputs: Mapping[str, Tensor]) -> Tokens:
        tokens, seen = [], []
        if self.shapes:
            numbers = torch.cat([take(inputs, key, shape) for key, shape in self.shapes.items()], dim=1)
            if self.numbers is not None:
                seen.append(self.numbers.seen(numbers))
                numbers = numbers[:, self.numbers.values]
            tokens.append(numbers.unsqueeze(2) * self.weight)
        if self.embeddings is not None:
            columns = self.embeddings.columns
            categories = take(inputs, "categorical", (columns,))
            seen.append(categories != MISSING)
            tokens.append(self.embeddings(categories).unflatten(1, (columns, self.width)))
        return Tokens(torch.cat(tokens, dim=1) + self.bias, None if self.numbers is None else torch.cat(seen, dim=1))


class Numbers:
    """Which numbers are values, and which mark a value as missing.

    Args:
        schema: of the inputs.
        keys: the vectors that are read, one after the other.
    """

    def __init__(self, schema: InputSchema, keys: list[str]) -> None:
        markers: list[int] = []
        for key in keys:
            of_key = schema.markers if key == "numeric" and schema.markers else (-1,) * schema.shapes[key][0]
            markers += [-1 if place < 0 else len(markers) + place for place in of_key]
        self.values = [place for place, marker in enumerate(markers) if marker != place]
        self._markers = [markers[place] for place in self.values]

    def seen(self, numbers: Float[Tensor, "B n"]) -> Bool[Tensor, "B m"]:
        """Which values are there."""
        always = torch.zeros_like(numbers[:, :1])
        return torch.cat([numbers, always], dim=1)[:, self._markers] == 0  # the marker -1 is the last, which is 0
