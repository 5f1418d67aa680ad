"""What a model's inputs look like: the one thing that data sources and encoders must agree on.

A batch of inputs is a mapping from a key to a tensor whose first dimension is the rows:

    numeric         float32 [B, n]       standardised columns, and 0/1 columns that mark missing values
    categorical     int64   [B, c]       one column a feature; 0 is a value unseen in training, 1 a missing one
    sequence        int64   [B, L, s]    lists, one column a feature, padded to the batch's longest; 0 is padding, then
                                         as above: 1 is unseen, 2 missing
    bits            float32 [B, b]       fingerprints and other fixed-length vectors
    image           float32 [B, C, H, W] in [0, 1]
    input_ids       int64   [B, L]       token ids, padded to the longest row of the batch
    attention_mask  int64   [B, L]       1 for a token, 0 for padding
    hidden          float32 [B, L, d]    instead of input_ids: outputs of frozen layers, computed once (see transformer)
    tokens          float32 [B, L, d]    what stems give to a trunk that reads sequences; of no source of rows
    tokens_mask     bool    [B, L]       which of them are no padding, where some are
    nodes           float32 [B, N, f]    a graph's nodes, padded to the largest graph of the batch
    node_mask       bool    [B, N]       True for a node, False for padding
    interest        bool    [B, N]       True for the nodes that the row is about: one, two, or all of them
    edges           int64   [B, E, 2]    from which of the row's nodes to which, counted from 1; 0 is padding
    edge_features   float32 [B, E, g]    where edges have features
"""

from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

GRAPH_INPUTS = ("nodes", "node_mask", "interest", "edges", "edge_features")


class GraphWidths(NamedTuple):
    """How many numbers a node and an edge of a graph have; an edge may have none."""

    nodes: int
    edges: int


@dataclass(frozen=True)
class InputSchema:
    """Shapes of a source's inputs without the row dimension; stored in config.json, so a model is rebuilt from it.

    Attributes:
        shapes: key -> shape of one row, for keys of fixed shape ("numeric", "bits", "image", ...).
        cardinalities: number of indices of each categorical column, the two reserved ones included.
        sequences: number of indices of each column of `sequence`, the three reserved ones included.
        longest: how many elements a row of `sequence` may have.
        text: True when the source gives `input_ids` and `attention_mask`.
        tokens: the width of `tokens`, of which a row has any number; 0 where there are none.
        graph: where the source gives a graph a row (`nodes`, `node_mask`, `interest`, `edges`, `edge_features`).
        markers: for each number of `numeric` the place of the 0/1 number that marks it as missing (of such a number its
            own place), or -1; empty where training has missed none.
        names: of the categorical columns, for an encoder that reads some of them; inputs are alike whatever they are.
    """

    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    cardinalities: tuple[int, ...] = ()
    sequences: tuple[int, ...] = ()
    longest: int = 0
    text: bool = False
    tokens: int = 0
    graph: GraphWidths | None = None
    markers: tuple[int, ...] = field(default=(), compare=False)
    names: tuple[str, ...] = field(default=(), compare=False)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "InputSchema":
        return cls(
            shapes={key: tuple(shape) for key, shape in values["shapes"].items()},
            cardinalities=tuple(values["cardinalities"]),
            sequences=tuple(values.get("sequences", ())),
            longest=values.get("longest", 0),
            text=values["text"],
            tokens=values.get("tokens", 0),
            graph=None if values.get("graph") is None else GraphWidths(*values["graph"]),
            markers=tuple(values.get("markers", ())),
            names=tuple(values.get("names", ())),
        )
