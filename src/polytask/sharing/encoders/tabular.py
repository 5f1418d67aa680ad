"""Rows of a table: an embedding for each categorical column, beside the numeric columns, into linear layers."""

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field, GetJsonSchemaHandler, PositiveInt, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema
from torch import Tensor, nn

from polytask.core.errors import BadValue, UnknownName
from polytask.core.inputs import InputSchema
from polytask.core.validation import Strict
from polytask.sharing.encoders.contract import Encoder, require, take
from polytask.sharing.layers import Activation, Normalization, dense_layers
from polytask.sharing.spec import EncoderOptions


class EmbeddingRule(Strict):
    """Width of a column's embedding from its number of categories n: min(most, ceil(factor * n ** power)).

    Source: fastai's rule of thumb, min(600, round(1.6 n^0.56)), with a smaller bound. A number w, for one width
    for all columns, is short for {factor: w, power: 0, most: w}.
    """

    factor: float = Field(default=1.6, gt=0)
    power: float = Field(default=0.56, ge=0)
    most: PositiveInt = 32

    @model_validator(mode="before")
    @classmethod
    def _number_is_one_width(cls, value: Any) -> Any:
        is_width = isinstance(value, int) and not isinstance(value, bool)
        return {"factor": value, "power": 0, "most": value} if is_width else value

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {"anyOf": [{"type": "integer", "minimum": 1}, handler(schema)]}

    def width(self, cardinality: int) -> int:
        return min(self.most, math.ceil(self.factor * cardinality**self.power))


class EmbeddingTable(nn.Embedding):
    """`nn.Embedding` whose backward pass on a CPU takes a third of the time.

    There index_select adds up rows faster than the embedding's own backward pass does, and as deterministically; on an
    accelerator its atomic additions would not be.
    """

    def forward(self, indices: Int[Tensor, "B c"]) -> Float[Tensor, "B c width"]:
        if self.weight.device.type != "cpu":
            return super().forward(indices)
        return self.weight.index_select(0, indices.flatten()).unflatten(0, indices.shape)


class PackedEmbeddings(nn.Module):
    """Embeddings of several categorical columns; the columns of one width lie end to end in one table.

    One lookup serves all columns of a width, so a step's time depends on the number of different widths (a handful)
    and not on the number of columns.

    Args:
        cardinalities: number of indices of each column.
        widths: width of each column's embedding.
        deviation: standard deviation of the normal start.
        key: the input that is read, for messages.
    """

    cardinalities: Tensor

    def __init__(
        self, cardinalities: tuple[int, ...], widths: list[int], deviation: float, key: str = "categorical"
    ) -> None:
        super().__init__()
        self.columns, self.key = len(cardinalities), key
        self.width = sum(widths)
        self.tables = nn.ModuleDict()
        self.register_buffer("cardinalities", torch.tensor(cardinalities), persistent=False)
        for width in sorted(dict.fromkeys(widths)):
            chosen = [column for column, of_column in enumerate(widths) if of_column == width]
            sizes = [cardinalities[column] for column in chosen]
            offsets = [sum(sizes[:position]) for position in range(len(sizes))]
            table = EmbeddingTable(sum(sizes), width)
            nn.init.normal_(table.weight, std=deviation)
            self.tables[str(width)] = table
            self.register_buffer(f"columns_{width}", torch.tensor(chosen), persistent=False)
            self.register_buffer(f"offsets_{width}", torch.tensor(offsets), persistent=False)

    def forward(self, indices: Int[Tensor, "B c"]) -> Float[Tensor, "B width"]:
        """Columns ordered by width, then as given."""
        self._check(indices)
        embedded = []
        for width, table in self.tables.items():
            chosen = indices if len(self.tables) == 1 else indices.index_select(1, getattr(self, f"columns_{width}"))
            embedded.append(table(chosen + getattr(self, f"offsets_{width}")).flatten(1))
        return embedded[0] if len(embedded) == 1 else torch.cat(embedded, dim=1)

    def _check(self, indices: Tensor) -> None:
        """An index beyond its column would read the next one's rows. On an accelerator a check would stall."""
        if indices.device.type != "cpu" or torch.compiler.is_compiling():
            return
        outside = (indices < 0) | (indices >= self.cardinalities)
        if outside.any():
            row, column = outside.nonzero()[0].tolist()
            most = int(self.cardinalities[column]) - 1
            raise BadValue(f"input {self.key!r}, row {row}, column {column}", int(indices[row, column]), f"0 to {most}")


class Tabular(Encoder):
    """Embeds categorical columns, concatenates the vectors (numeric, bits), applies linear layers.

    Source: Guo and Berkhahn 2016 (arXiv:1604.06737), section III, for the embeddings of categorical columns.
    Departures: the embeddings start from a normal distribution with a small deviation, so that a column of many
    categories does not drown the standardised numeric ones at the start; dropout may act on the inputs too.
    Cost: one lookup for each different embedding width, then one multiply-add a weight of the linear layers and row.
    """

    class Options(EncoderOptions):
        """Attributes: embedding, the rule for the widths (a number: one width for all); hidden_sizes, the last is the
        width of the features; dropout after each hidden layer; input_dropout on what the first layer reads; columns,
        the categorical ones that are read, and keys, the vectors; all unless they are named.
        """

        kind: Literal["tabular"] = "tabular"
        columns: tuple[str, ...] | None = None
        keys: tuple[str, ...] | None = None
        embedding: EmbeddingRule = EmbeddingRule()
        embedding_deviation: float = Field(default=0.1, gt=0)
        hidden_sizes: tuple[PositiveInt, ...] = (256, 128)
        activation: Activation = "relu"
        normalization: Normalization = "none"
        dropout: float = Field(default=0.0, ge=0, lt=1)
        input_dropout: float = Field(default=0.0, ge=0, lt=1)

    def __init__(self, options: Options, schema: InputSchema) -> None:
        super().__init__()
        vectors = [key for key, shape in schema.shapes.items() if len(shape) == 1]
        self.keys = vectors if options.keys is None else list(options.keys)
        columns = _places(options.columns, schema)
        reads = [*self.keys, *(["categorical"] if columns else [])]
        chosen = options.keys is not None or options.columns is not None
        require("tabular", schema, reads or ["categorical"], rest=chosen)
        self.shapes = {key: schema.shapes[key] for key in self.keys}
        self.embeddings: PackedEmbeddings | None = None
        self.columns = columns if options.columns is not None else None  # None: as they come
        self.given = len(schema.cardinalities)
        if columns:
            cardinalities = tuple(schema.cardinalities[column] for column in columns)
            widths = [options.embedding.width(n) for n in cardinalities]
            self.embeddings = PackedEmbeddings(cardinalities, widths, options.embedding_deviation)
        inputs = sum(shape[0] for shape in self.shapes.values())
        inputs += self.embeddings.width if self.embeddings is not None else 0
        self.input_dropout = nn.Dropout(options.input_dropout)
        self.layers = dense_layers(
            inputs,
            options.hidden_sizes,
            activation=options.activation,
            dropout=options.dropout,
            normalization=options.normalization,
        )
        self.width = (inputs, *options.hidden_sizes)[-1]

    def forward(self, inputs: Mapping[str, Tensor]) -> Float[Tensor, "B width"]:
        vectors = [take(inputs, key, shape) for key, shape in self.shapes.items()]
        if self.embeddings is not None:
            indices = take(inputs, "categorical", (self.given,))
            vectors.append(self.embeddings(indices if self.columns is None else indices[:, self.columns]))
        return self.layers(self.input_dropout(torch.cat(vectors, dim=1)))


def _places(columns: tuple[str, ...] | None, schema: InputSchema) -> list[int]:
    """Where the categorical columns that are read stand among all of them."""
    if columns is None:
        return list(range(len(schema.cardinalities)))
    for column in columns:
        if column not in schema.names:
            raise UnknownName("categorical column", column, schema.names, "encoder 'tabular', columns")
    return [schema.names.index(column) for column in columns]
