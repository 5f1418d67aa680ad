"""A token a column of a table, for architectures that let columns attend to each other."""

import math
from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from polytask.core.inputs import InputSchema
from polytask.sharing.encoders.contract import Encoder, MadeOf, Tokens, require, take
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
        by_column = tuple(MadeOf(1, classes=classes) for classes in schema.cardinalities)
        self.made_of = ((MadeOf(numbers, numbers=1),) if numbers else ()) + by_column
        self.weight = nn.Parameter(torch.randn(numbers, options.width) * deviation)
        self.bias = nn.Parameter(torch.randn(numbers + categories, options.width) * deviation)
        self.embeddings: PackedEmbeddings | None = None
        if categories:
            self.embeddings = PackedEmbeddings(schema.cardinalities, [options.width] * categories, deviation)

    def forward(self, inputs: Mapping[str, Tensor]) -> Tokens:
        numbers, categories = self._read(inputs)
        tokens, seen = [], []
        if numbers is not None:
            if self.numbers is not None:
                seen.append(self.numbers.seen(numbers))
            tokens.append(self._values(numbers) * self.weight)
        if self.embeddings is not None and categories is not None:
            seen.append(categories != MISSING)
            tokens.append(self.embeddings(categories).unflatten(1, (categories.shape[1], self.width)))
        return Tokens(torch.cat(tokens, dim=1) + self.bias, None if self.numbers is None else torch.cat(seen, dim=1))

    def raw(self, inputs: Mapping[str, Tensor]) -> list[Tensor]:
        numbers, categories = self._read(inputs)
        columns = [] if categories is None else list(categories.split(1, dim=1))
        return [*([] if numbers is None else [self._values(numbers)]), *columns]

    def _read(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor | None, Tensor | None]:
        """The numbers of all vectors side by side, and the categories."""
        vectors = [take(inputs, key, shape) for key, shape in self.shapes.items()]
        if self.embeddings is None:
            return torch.cat(vectors, dim=1), None
        categories = take(inputs, "categorical", (self.embeddings.columns,))
        return torch.cat(vectors, dim=1) if vectors else None, categories

    def _values(self, numbers: Float[Tensor, "B n"]) -> Float[Tensor, "B m 1"]:
        """Those that are tokens."""
        return (numbers if self.numbers is None else numbers[:, self.numbers.values]).unsqueeze(2)


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
