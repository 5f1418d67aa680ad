"""Graphs: a row's nodes, the edges between them, and the nodes that the row is about."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import torch

from polytask.core.errors import DataError
from polytask.core.inputs import GraphWidths
from polytask.tasks.examples import Ragged
from polytask.tasks.features.feature import Place
from polytask.tasks.features.options import GraphOptions


@dataclass(frozen=True)
class Lists:
    """A list a row, packed end to end: row i has the items `values[offsets[i]:offsets[i + 1]]`."""

    values: np.ndarray  # [total, width]
    offsets: np.ndarray  # int64 [N + 1]

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.offsets)

    @property
    def rows(self) -> np.ndarray:
        """int64 [total]: which row an item is of."""
        return np.repeat(np.arange(len(self.offsets) - 1), self.lengths)


class Graph:
    """The inputs `nodes`, `node_mask`, `interest`, `edges` and, where edges have features, `edge_features`; the numbers
    are taken as they are. How many a node and an edge have is learned from the training rows."""

    kind, key = "graph", "nodes"

    def __init__(self, column: str, options: GraphOptions) -> None:
        self.column, self.options = column, options
        self.columns: tuple[str, ...] = (column, *options.beside)
        self._nodes = self._edges = 0

    @property
    def graph(self) -> GraphWidths:
        return GraphWidths(self._nodes, self._edges)

    def observe(self, frame: pl.DataFrame, place: Place) -> None:
        self._nodes = self._nodes or _first_width(frame[self.column], place)
        if self.options.edge_features is not None:
            self._edges = self._edges or _first_width(frame[self.options.edge_features], place)

    def finish(self, place: Place) -> None:
        if not self._nodes:
            raise DataError(f"{place.where}: column {self.column!r} has no node; allowed: a list of nodes a row")
        if self.options.edge_features is not None and not self._edges:
            raise DataError(f"{place.where}: column {self.options.edge_features!r} has no number in any training row")

    def encode(self, frame: pl.DataFrame, place: Place) -> dict[str, Ragged]:
        nodes = lists(frame[self.column], place, self._nodes)
        if not nodes.lengths.all():
            raise DataError(f"{place.row(int(nodes.lengths.argmin()))}: column {self.column!r} has no node")
        edges = self._places(frame[self.options.edges], place, nodes, 2)
        features = None
        if self.options.edge_features is not None:
            features = lists(frame[self.options.edge_features], place, self._edges)
            differs = features.lengths != edges.lengths
            if differs.any():
                row = int(differs.argmax())
                raise DataError(
                    f"{place.row(row)}: {edges.lengths[row]} pairs in column {self.options.edges!r}, but "
                    f"{features.lengths[row]} in {self.options.edge_features!r}; allowed: as many"
                )
        interest = np.ones(len(nodes.values), dtype=bool)
        if self.options.interest is not None:
            interest = self._interest(frame[self.options.interest], place, nodes)
        found = None if features is None else features.values
        return graph_inputs(nodes, edges, found, interest, directed=self.options.directed)

    def to_json(self) -> dict[str, Any]:
        return {"column": self.column, **self.options.model_dump(), "widths": list(self.graph)}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Graph":
        feature = cls(values["column"], GraphOptions(**{key: values[key] for key in GraphOptions.model_fields}))
        feature._nodes, feature._edges = values["widths"]
        return feature

    def _places(self, series: pl.Series, place: Place, nodes: Lists, width: int) -> Lists:
        """Places of nodes, each checked to be one of its row's."""
        found = lists(series, place, width)
        outside = ((found.values < 0) | (found.values >= nodes.lengths[found.rows][:, None])).any(axis=1)
        outside |= (found.values != np.trunc(found.values)).any(axis=1)
        if outside.any():
            item = int(outside.argmax())
            row = int(found.rows[item])
            most = int(nodes.lengths[row]) - 1
            raise DataError(
                f"{place.row(row)}: column {series.name!r} names the node {found.values[item].tolist()}; allowed: "
                f"places from 0 to {most}, as the row has {most + 1} nodes"
            )
        return Lists(found.values.astype(np.int64), found.offsets)

    def _interest(self, series: pl.Series, place: Place, nodes: Lists) -> np.ndarray:
        """bool [total nodes]."""
        named = self._places(series, place, nodes, 1)
        if not named.lengths.all():
            row = place.row(int(named.lengths.argmin()))
            raise DataError(f"{row}: column {series.name!r} names no node; allowed: at least one")
        interest = np.zeros(len(nodes.values), dtype=bool)
        interest[nodes.offsets[named.rows] + named.values[:, 0]] = True
        return interest


def graph_inputs(
    nodes: Lists, edges: Lists, edge_features: np.ndarray | None, interest: np.ndarray, *, directed: bool
) -> dict[str, Ragged]:
    """The inputs of these graphs; see `polytask.core.inputs`."""
    pairs, offsets = edges.values, edges.offsets
    if not directed:
        pairs = np.stack([pairs, pairs[:, ::-1]], axis=1).reshape(-1, 2)
        offsets = offsets * 2
        edge_features = None if edge_features is None else edge_features.repeat(2, axis=0)
    of_nodes, of_edges = torch.from_numpy(nodes.offsets), torch.from_numpy(offsets)
    inputs = {
        "nodes": Ragged(torch.from_numpy(nodes.values.astype(np.float32)), of_nodes),
        "node_mask": Ragged(torch.ones(len(nodes.values), dtype=torch.bool), of_nodes),
        "interest": Ragged(torch.from_numpy(interest), of_nodes),
        "edges": Ragged(torch.from_numpy(pairs + 1), of_edges),
    }
    if edge_features is not None:
        inputs["edge_features"] = Ragged(torch.from_numpy(edge_features.astype(np.float32)), of_edges)
    return inputs


def lists(series: pl.Series, place: Place, width: int) -> Lists:
    """A column of lists whose items are `width` numbers each, or, where that is 1, numbers; a number for a list of one.

    Raises: DataError naming the row of what is missing, not finite, or of another width.
    """
    lengths, items = _items(series, place)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    if not len(items):
        return Lists(np.zeros((0, width)), offsets)
    found = _widths(items)
    wrong = (found != width).to_numpy()
    if wrong.any():
        row = int(np.searchsorted(offsets, int(wrong.argmax()), side="right")) - 1
        has = found[int(wrong.argmax())]
        raise DataError(
            f"{place.row(row)}: column {series.name!r} has an item of {has or 'no'} numbers; allowed: {width} each"
        )
    if isinstance(items.dtype, pl.List):
        items = items.explode()
    values = _numbers(items, series, place).reshape(-1, width)
    bad = ~np.isfinite(values).all(axis=1)
    if bad.any():
        row = int(np.searchsorted(offsets, int(bad.argmax()), side="right")) - 1
        raise DataError(f"{place.row(row)}: column {series.name!r} holds a missing or infinite number")
    return Lists(values, offsets)


def _items(series: pl.Series, place: Place) -> tuple[np.ndarray, pl.Series]:
    """How many items each row has, and all of them."""
    if series.null_count():
        raise DataError(f"{place.first(series.is_null())[1]}: column {series.name!r} is missing")
    if isinstance(series.dtype, pl.Array):
        series = series.arr.to_list()
    if series.dtype.is_numeric():
        return np.ones(len(series), dtype=np.int64), series
    if not isinstance(series.dtype, pl.List):
        raise DataError(f"{place.where}: column {series.name!r} has type {series.dtype}; allowed: a list a row")
    lengths = series.list.len()
    items = series.filter(lengths > 0).explode()  # an empty list would become a null
    return lengths.to_numpy().astype(np.int64), items


def _widths(items: pl.Series) -> pl.Series:
    """How many numbers each item has; 0 for a missing one."""
    if isinstance(items.dtype, pl.List):
        return items.list.len().fill_null(0)
    width = items.dtype.size if isinstance(items.dtype, pl.Array) else 1
    return items.is_not_null().cast(pl.Int64) * width


def _first_width(series: pl.Series, place: Place) -> int:
    """Of the first item; 0 where there is none."""
    items = _items(series, place)[1]
    return int(_widths(items.head(1))[0]) if len(items) else 0


def _numbers(items: pl.Series, series: pl.Series, place: Place) -> np.ndarray:
    inner = items.dtype.inner if isinstance(items.dtype, pl.Array) else items.dtype
    if inner is None or not (inner.is_numeric() or inner == pl.Boolean):
        raise DataError(f"{place.where}: column {series.name!r} has type {series.dtype}; allowed: lists of numbers")
    if isinstance(items.dtype, pl.Array):
        return items.cast(pl.Array(pl.Float64, items.dtype.size)).to_numpy()
    return items.cast(pl.Float64).to_numpy()
