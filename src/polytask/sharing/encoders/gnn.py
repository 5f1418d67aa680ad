"""A graph network: the nodes of each row's graph read their neighbours, layer by layer."""

from collections.abc import Mapping
from typing import ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor, nn

from polytask.core.errors import BadValue
from polytask.core.inputs import GraphWidths, InputSchema
from polytask.sharing.encoders.contract import Encoder, Tokens, require, take
from polytask.sharing.layers import Stack
from polytask.sharing.spec import EncoderOptions

Join = Literal["sum", "mean"]


class GNN(Encoder):
    """h_i becomes relu(norm(W_0 h_i + b + W_1 sum over j that point to i of relu(h_j + E e_ji))), `layers` times; a row
    is the mean, or sum, of its nodes of interest: one for a node's label, two for a link's, all for a graph's.

    Source: Schlichtkrull et al. 2017, arXiv:1703.06103, for a matrix for a node itself and another for what it reads;
    Hu et al. 2019, arXiv:1905.12265, for the message relu(h_j + E e_ji), as the documentation of PyTorch Geometric's
    GINEConv gives it (the papers were not at hand).
    Departures: kinds of edges are told apart by their features and not by a matrix each; layer normalisation, so that a
    row's features depend on no other row.
    Cost: a layer is 2 d^2 multiply-adds a node, and d g an edge whose features have g numbers; padding costs nothing.
    """

    class Options(EncoderOptions):
        """Attributes: width of a node's features; aggregate, how what a node reads is joined; pooling, how a row's
        nodes of interest are, or `none`: all nodes, as a sequence.
        """

        widths: ClassVar[dict[str, int]] = {"width": 1}
        kind: Literal["gnn"] = "gnn"
        width: PositiveInt = 64
        layers: NonNegativeInt = 3
        aggregate: Join = "sum"
        pooling: Literal["mean", "sum", "none"] = "mean"
        normalization: Literal["layer", "none"] = "layer"
        dropout: float = Field(default=0.0, ge=0, lt=1)

    def __init__(self, options: Options, schema: InputSchema) -> None:
        super().__init__()
        require("gnn", schema, ["graph"])
        assert schema.graph is not None
        self.widths, self.pooling, self.width = schema.graph, options.pooling, options.width
        self.normalization, self.dropout = options.normalization, options.dropout
        self.gives = "sequence" if options.pooling == "none" else "vector"
        self.embedding = nn.Linear(schema.graph.nodes, options.width)
        self.layers = Stack(
            GraphLayer(self.new_update(), options.aggregate, schema.graph.edges) for _ in range(options.layers)
        )

    def new_update(self) -> "Update":
        """Of the kind that each layer has."""
        return Update(self.width, self.normalization, self.dropout)

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor | Tokens:
        graphs = self.read(inputs)
        states = self.states(graphs)[-1]
        if self.pooling == "none":
            return Tokens(unpacked(states, graphs), take(inputs, "node_mask"))
        return of_interest(states, graphs, self.pooling)

    def read(self, inputs: Mapping[str, Tensor]) -> "Graphs":
        """The graphs of a batch; BadValue for inputs whose shapes do not go together."""
        return packed(inputs, self.widths)

    def states(self, graphs: "Graphs") -> list[Float[Tensor, "M d"]]:
        """The nodes' states before the first layer and after each."""
        states = [self.embedding(graphs.nodes)]
        for layer in self.layers:
            states.append(layer(states[-1], graphs))
        return states


class Graphs(NamedTuple):
    """A batch's M nodes and K edges without the padding.

    Attributes:
        index: where each node stands among all B x N places.
        chosen: the nodes of interest, and row, which row each of those is of.
        source, target: the nodes that an edge leads from and to.
        shape: B and N.
    """

    nodes: Float[Tensor, "M f"]
    index: Int[Tensor, "M"]
    chosen: Int[Tensor, "I"]
    row: Int[Tensor, "I"]
    source: Int[Tensor, "K"]
    target: Int[Tensor, "K"]
    edge_features: Float[Tensor, "K g"] | None
    shape: tuple[int, int]


def packed(inputs: Mapping[str, Tensor], widths: GraphWidths) -> Graphs:
    """The graphs of a batch; BadValue for inputs whose shapes do not go together."""
    nodes, edges = take(inputs, "nodes"), take(inputs, "edges")
    mask, interest = take(inputs, "node_mask"), take(inputs, "interest")
    features = take(inputs, "edge_features") if widths.edges else None
    _check(nodes, mask, interest, edges, features, widths)
    rows, most = mask.shape
    if edges.device.type == "cpu" and not torch.compiler.is_compiling():  # on an accelerator a check would stall
        _check_places(edges, mask)
    index = mask.flatten().nonzero().squeeze(1)
    there = edges[:, :, 0].flatten().nonzero().squeeze(1)
    first = torch.arange(rows, device=edges.device)[:, None, None] * most - 1  # places are counted from 1
    ends = (edges + first).flatten(0, 1).index_select(0, there)
    place = mask.flatten().cumsum(0) - 1
    source, target = place.index_select(0, ends.flatten()).unflatten(0, (-1, 2)).unbind(1)
    chosen = interest.flatten().index_select(0, index).nonzero().squeeze(1)
    row = index.index_select(0, chosen) // most
    held = None if features is None else features.flatten(0, 1).index_select(0, there)
    return Graphs(nodes.flatten(0, 1).index_select(0, index), index, chosen, row, source, target, held, (rows, most))


def unpacked(states: Float[Tensor, "M d"], graphs: Graphs) -> Float[Tensor, "B N d"]:
    """The nodes at their places, zeros where there is none."""
    rows, most = graphs.shape
    return states.new_zeros(rows * most, states.shape[1]).index_add(0, graphs.index, states).unflatten(0, (rows, most))


def of_interest(states: Float[Tensor, "M d"], graphs: Graphs, join: str) -> Float[Tensor, "B d"]:
    """The sum or mean of each row's nodes of interest."""
    return joined(states.index_select(0, graphs.chosen), graphs.row, graphs.shape[0], join)


def joined(values: Float[Tensor, "K d"], place: Int[Tensor, "K"], places: int, join: str) -> Float[Tensor, "n d"]:
    """At each of `places` places the sum or mean of the values for it, 0 where there is none."""
    total = values.new_zeros(places, values.shape[1]).index_add(0, place, values)
    if join == "sum":
        return total
    count = values.new_zeros(places).index_add(0, place, values.new_ones(place.shape[0]))
    return total / count.clamp(min=1).unsqueeze(1)


class Update(nn.Module):
    """What a node becomes of its own state and what it has read."""

    def __init__(self, width: int, normalization: str, dropout: float) -> None:
        super().__init__()
        self.own = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width) if normalization == "layer" else nn.Identity()
        self.dropout = nn.Dropout(dropout)

    def forward(self, states: Float[Tensor, "*B d"], read: Float[Tensor, "*B d"]) -> Float[Tensor, "*B d"]:
        return self.dropout(torch.relu(self.norm(self.own(states) + read)))


class GraphLayer(nn.Module):
    """One round of messages along the edges."""

    def __init__(self, update: Update, aggregate: str, edge_width: int) -> None:
        super().__init__()
        self.update, self.aggregate = update, aggregate
        width = update.own.out_features
        self.neighbours = nn.Linear(width, width, bias=False)
        self.edges = nn.Linear(edge_width, width, bias=False) if edge_width else None

    def forward(self, states: Float[Tensor, "M d"], graphs: Graphs) -> Float[Tensor, "M d"]:
        messages = states.index_select(0, graphs.source)
        if self.edges is not None:
            messages = messages + self.edges(graphs.edge_features)
        read = joined(torch.relu(messages), graphs.target, states.shape[0], self.aggregate)
        return self.update(states, self.neighbours(read))


def _check(
    nodes: Tensor, mask: Tensor, interest: Tensor, edges: Tensor, features: Tensor | None, widths: GraphWidths
) -> None:
    if nodes.dim() != 3 or nodes.shape[2] != widths.nodes:
        raise BadValue("input 'nodes'", list(nodes.shape), f"[rows, nodes, {widths.nodes}]")
    for name, marks in (("node_mask", mask), ("interest", interest)):
        if marks.shape != nodes.shape[:2] or marks.dtype != torch.bool:
            raise BadValue(
                f"input {name!r}", f"{list(marks.shape)} {marks.dtype}", f"{list(nodes.shape[:2])} torch.bool"
            )
    if edges.dim() != 3 or edges.shape[0] != nodes.shape[0] or edges.shape[2] != 2:
        raise BadValue("input 'edges'", list(edges.shape), f"[{nodes.shape[0]}, edges, 2]")
    if features is not None and features.shape != (*edges.shape[:2], widths.edges):
        expected = [*edges.shape[:2], widths.edges]
        raise BadValue("input 'edge_features'", list(features.shape), f"{expected}, as the edges")


def _check_places(edges: Tensor, mask: Tensor) -> None:
    """An edge to where no node is would lead to another one's."""
    known = nn.functional.pad(mask, (1, 0), value=True)  # 0 is padding
    inside = (edges >= 0) & (edges <= mask.shape[1])
    found = known.gather(1, (edges * inside).flatten(1)).view(edges.shape) & inside
    whole = (edges == 0).sum(2) != 1
    if not (found.all() and whole.all()):
        row = int((~(found.all(2) & whole).all(1)).nonzero()[0])
        raise BadValue(f"input 'edges', row {row}", edges[row].tolist(), "places of nodes, from 1, or 0 and 0 for none")
