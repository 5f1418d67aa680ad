"""A multilayer perceptron over every vector and array of the inputs."""

from collections.abc import Mapping
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field, PositiveInt
from torch import Tensor

from polytask.core.inputs import InputSchema
from polytask.sharing.encoders.contract import Encoder, require, take
from polytask.sharing.layers import Activation, Normalization, dense_layers
from polytask.sharing.spec import EncoderOptions


class MLP(Encoder):
    """Flattens and concatenates the inputs of fixed shape (numeric, bits, image, ...), then linear layers.

    Source: the textbook network; no paper.
    Departures: none.
    Cost: one multiply-add a weight and row.
    """

    class Options(EncoderOptions):
        """Attributes: hidden_sizes, outermost last; keys: the inputs to read, all of them if None."""

        kind: Literal["mlp"] = "mlp"
        hidden_sizes: tuple[PositiveInt, ...] = (256, 128)
        activation: Activation = "relu"
        normalization: Normalization = "none"
        dropout: float = Field(default=0.0, ge=0, lt=1)
        keys: Annotated[tuple[str, ...], Field(min_length=1)] | None = None

    def __init__(self, options: Options, schema: InputSchema) -> None:
        super().__init__()
        keys = list(schema.shapes) if options.keys is None else list(options.keys)
        require("mlp", InputSchema(shapes=schema.shapes), keys, rest=True)
        require("mlp", schema, keys, rest=options.keys is not None)
        self.shapes = {key: schema.shapes[key] for key in keys}
        inputs = sum(torch.Size(shape).numel() for shape in self.shapes.values())
        self.layers = dense_layers(
            inputs,
            options.hidden_sizes,
            activation=options.activation,
            dropout=options.dropout,
            normalization=options.normalization,
        )
        self.width = (inputs, *options.hidden_sizes)[-1]

    def forward(self, inputs: Mapping[str, Tensor]) -> Float[Tensor, "B width"]:
        vectors = [take(inputs, key, shape).flatten(1) for key, shape in self.shapes.items()]
        return self.layers(vectors[0] if len(vectors) == 1 else torch.cat(vectors, dim=1))
