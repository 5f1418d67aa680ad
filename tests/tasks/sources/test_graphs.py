"""Generated graphs: what they hold, and that a label is what the edges say."""

from typing import Any

import numpy as np
import polars as pl
import pytest
from pydantic import ValidationError

from polytask.tasks.data_spec import DataSpec, GraphSpec
from polytask.tasks.sources.graphs import LABELS, graphs


def table(rows: int = 200, seed: int = 0, **options: Any) -> pl.DataFrame:
    frame = graphs(GraphSpec.model_validate(options), {"train": rows, "valid": 2, "test": 2}, seed)
    return frame.head(rows)


@pytest.mark.parametrize("interest", LABELS)
def test_columns_and_ranges(interest: str) -> None:
    frame = table(interest=interest, nodes=[4, 7])
    assert frame.columns == ["nodes", "edges", "interest", LABELS[interest], "split"]
    sizes = frame["nodes"].list.len()
    assert (sizes.min(), sizes.max()) == (4, 7)
    asked = {"node": {1}, "link": {2}, "graph": {4, 5, 6, 7}}[interest]
    assert set(frame["interest"].list.len()) == asked
    for nodes, edges in frame.select("nodes", "edges").iter_rows():
        pairs = np.array(edges).reshape(-1, 2)
        assert (pairs[:, 0] < pairs[:, 1]).all()
        assert (pairs < len(nodes)).all()
        assert (np.array(nodes).sum(1) == 1).all()
    assert set(frame[LABELS[interest]]) == ({0, 1} if interest == "link" else {0, 1, 2})


@pytest.mark.parametrize("interest", LABELS)
def test_the_same_seed_gives_the_same_graphs_and_more_of_them_change_none(interest: str) -> None:
    few = table(20, interest=interest)
    assert few.equals(table(20, interest=interest))
    assert few.equals(table(50, interest=interest).head(20))
    assert not few.equals(table(20, seed=1, interest=interest))


def test_where_everything_is_joined_by_community_the_neighbours_tell_the_label() -> None:
    """No edge between communities, all inside, all nodes known but the one that is asked for."""
    frame = table(interest="node", inside=1.0, between=0.0, shown=1.0)
    told = 0
    for nodes, edges, (asked,), label in frame.drop("split").iter_rows():
        assert nodes[asked] == [0, 0, 0, 1]
        beside = [one if other == asked else other for one, other in edges if asked in (one, other)]
        assert all(nodes[node][label] == 1 for node in beside)
        told += bool(beside)
    assert told > 150


def test_a_link_is_not_among_the_edges_and_both_answers_are_as_frequent() -> None:
    frame = table(1000, interest="link", inside=1.0)
    for edges, ends in frame.select("edges", "interest").iter_rows():
        assert sorted(ends) not in edges
    assert 0.4 < frame["same"].mean() < 0.6


def test_the_largest_community_is_counted() -> None:
    frame = table(interest="graph", shown=1.0)
    for nodes, label in frame.select("nodes", "largest").iter_rows():
        assert np.array(nodes).sum(0).argmax() == label


@pytest.mark.parametrize(
    "options, message",
    [
        ({"nodes": [9, 8]}, "the least and then the most"),
        ({"nodes": [1, 8]}, "greater than or equal to 2"),
        ({"interest": "edge"}, "'node', 'link' or 'graph'"),
        ({"inside": 1.5}, "less than or equal to 1"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        GraphSpec.model_validate(options)


def test_a_generated_source_has_a_split_of_its_own() -> None:
    with pytest.raises(ValidationError, match="graphs data has its own split"):
        DataSpec.model_validate({"graphs": {}, "split": "split"})
