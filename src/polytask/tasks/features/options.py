"""What a recipe may say about a feature: `features: {column: {kind: ..., ...}}`, or `{column: kind}` for short."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


class Options(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    @property
    def beside(self) -> tuple[str, ...]:
        """The columns that the feature reads beside its own."""
        return ()


class NumericOptions(Options):
    """A number a row, standardised with the mean and the standard deviation of the training rows."""

    kind: Literal["numeric"] = "numeric"
    standardise: bool = True


class PiecewiseLinearOptions(Options):
    """A number a row, coded by how far it has gone through each interval between `bins` + 1 quantiles of training."""

    kind: Literal["piecewise_linear"] = "piecewise_linear"
    bins: int = Field(default=48, ge=1)


class CategoricalOptions(Options):
    """An index a row. Values that fewer than `minimum_count` training rows have count as unseen."""

    kind: Literal["categorical"] = "categorical"
    minimum_count: int = Field(default=1, ge=1)


class MultiHotOptions(Options):
    """A list of values a row, as one 0/1 entry a value; the `most` most frequent values of training are kept. With
    `separator` the column is text, which it divides into the values."""

    kind: Literal["multi_hot"] = "multi_hot"
    most: int = Field(default=1024, ge=1)
    separator: str | None = Field(default=None, min_length=1)


class SequenceOptions(Options):
    """A list of values a row, in order, an index each; of a longer list the last `max_length` values are kept. Values
    that occur less often than `minimum_count` in training count as unseen; `separator` is as of multi_hot."""

    kind: Literal["sequence"] = "sequence"
    max_length: int = Field(default=50, ge=1)
    minimum_count: int = Field(default=1, ge=1)
    separator: str | None = Field(default=None, min_length=1)


class VectorOptions(Options):
    """A list of numbers a row, of one length, each standardised as a numeric column."""

    kind: Literal["vector"] = "vector"
    standardise: bool = True


class ArrayOptions(Options):
    """An array of numbers a row, of one shape, as it is; the input's key is the column's name."""

    kind: Literal["array"] = "array"


class ImageOptions(Options):
    """An encoded image (bytes, or the path of a file) or an array [H, W], [H, W, C] or [C, H, W] a row.

    Integers are divided by 255; floating point arrays are taken as they are. `size` [height, width] resizes encoded
    images, which must otherwise have one size; `channels` 1 or 3 converts them (default: as the first training image).
    """

    kind: Literal["image"] = "image"
    size: tuple[int, int] | None = None
    channels: Literal[1, 3] | None = None


class MorganOptions(Options):
    """A molecule in SMILES notation as a Morgan fingerprint; `counts` gives log(1 + count) instead of 0/1."""

    kind: Literal["morgan"] = "morgan"
    radius: int = Field(default=2, ge=0)
    bits: int = Field(default=2048, ge=8)
    counts: bool = False
    chirality: bool = False
    invalid: Literal["error", "drop"] = "error"


class TextOptions(Options):
    """A text a row as token ids, cut after `max_length` tokens; `pair` names a column with each row's second text."""

    kind: Literal["text"] = "text"
    pair: str | None = None
    max_length: int = Field(default=128, ge=2)

    @property
    def beside(self) -> tuple[str, ...]:
        return () if self.pair is None else (self.pair,)


class GraphOptions(Options):
    """A graph a row: the column lists the nodes' numbers (a list a node, or a number a node), `edges` the pairs of
    nodes that are joined, counted from 0, and `edge_features` the numbers of each pair.

    `interest` lists the nodes that the row is about (null: all); an edge is read in both directions unless `directed`.
    """

    kind: Literal["graph"] = "graph"
    edges: str
    edge_features: str | None = None
    interest: str | None = None
    directed: bool = False

    @property
    def beside(self) -> tuple[str, ...]:
        return tuple(column for column in (self.edges, self.edge_features, self.interest) if column is not None)


class MoleculeOptions(Options):
    """A molecule in SMILES notation as a graph: its heavy atoms are the nodes, its bonds the edges."""

    kind: Literal["molecule"] = "molecule"
    invalid: Literal["error", "drop"] = "error"


def _spelled_out(value: Any) -> Any:
    return {"kind": value} if isinstance(value, str) else value


NumberOptions = Annotated[
    NumericOptions | PiecewiseLinearOptions, Field(discriminator="kind"), BeforeValidator(_spelled_out)
]

AnyOptions = Annotated[
    NumericOptions
    | PiecewiseLinearOptions
    | CategoricalOptions
    | MultiHotOptions
    | SequenceOptions
    | VectorOptions
    | ArrayOptions
    | ImageOptions
    | MorganOptions
    | MoleculeOptions
    | GraphOptions
    | TextOptions,
    Field(discriminator="kind"),
    BeforeValidator(_spelled_out),
]
