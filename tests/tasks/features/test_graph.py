"""Graphs in columns, and what cannot be one."""

import json
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from polytask.core.errors import DataError
from polytask.core.inputs import GraphWidths
from polytask.tasks.data import DataSpec, load_data
from polytask.tasks.examples import Ragged
from polytask.tasks.features.feature import Place
from polytask.tasks.features.graph import Graph
from polytask.tasks.features.options import GraphOptions
from polytask.tasks.preprocess import Preprocessor
from polytask.tasks.sources.stream import joined
from polytask.tasks.task import Task

OPTIONS = {"edges": "edges", "edge_features": "weight", "interest": "about"}
# a path of three nodes, a single node, and two that are joined
ROWS: dict[str, list[Any]] = {
    "nodes": [[[1.0, 0.5], [2.0, 0.5], [3.0, 0.5]], [[4.0, 0.0]], [[5.0, 0.0], [6.0, 1.0]]],
    "edges": [[[0, 1], [1, 2]], [], [[1, 0]]],
    "weight": [[0.1, 0.2], [], [0.3]],
    "about": [[0, 2], [0], [1]],
}


def fitted(**options: Any) -> Preprocessor:
    feature = Graph("nodes", GraphOptions.model_validate({**OPTIONS, **options}))
    return Preprocessor([feature]).fit([(pl.DataFrame(ROWS), Place("t"))])


def batch(preprocessor: Preprocessor, index: list[int], **rows: list[Any]) -> dict[str, Any]:
    inputs = preprocessor.transform(pl.DataFrame({**ROWS, **rows}))
    assert all(isinstance(packed, Ragged) for packed in inputs.values())
    return {key: packed.padded(torch.tensor(index)).tolist() for key, packed in inputs.items()}


def test_a_batch_is_padded_to_its_largest_graph_and_edges_go_both_ways() -> None:
    found = batch(fitted(), [0, 2])
    assert found["nodes"] == [[[1.0, 0.5], [2.0, 0.5], [3.0, 0.5]], [[5.0, 0.0], [6.0, 1.0], [0.0, 0.0]]]
    assert found["node_mask"] == [[True, True, True], [True, True, False]]
    assert found["interest"] == [[True, False, True], [False, True, False]]
    assert found["edges"] == [[[1, 2], [2, 1], [2, 3], [3, 2]], [[2, 1], [1, 2], [0, 0], [0, 0]]]
    np.testing.assert_allclose(found["edge_features"], np.array([[0.1, 0.1, 0.2, 0.2], [0.3, 0.3, 0, 0]])[..., None])


def test_a_graph_without_edges_is_one_too() -> None:
    found = batch(fitted(), [1])
    assert (found["nodes"], found["edges"], found["edge_features"]) == ([[[4.0, 0.0]]], [[]], [[]])
    assert found["interest"] == [[True]]


def test_directed_edges_go_one_way_and_everything_else_may_be_left_out() -> None:
    preprocessor = fitted(directed=True, edge_features=None, interest=None)
    found = batch(preprocessor, [0])
    assert found["edges"] == [[[1, 2], [2, 3]]]
    assert found["interest"] == found["node_mask"] == [[True, True, True]]
    assert "edge_features" not in found
    assert preprocessor.columns == ["nodes", "edges"]
    assert preprocessor.schema.graph == GraphWidths(2, 0)


def test_numbers_for_nodes_and_a_number_for_the_node_of_interest() -> None:
    rows = {**ROWS, "nodes": [[1, 2, 3], [4], [5, 6]], "about": [2, 0, 1]}
    feature = Graph("nodes", GraphOptions.model_validate(OPTIONS))
    inputs = Preprocessor([feature]).fit([(pl.DataFrame(rows), Place("t"))]).transform(pl.DataFrame(rows))
    assert inputs["nodes"].values.tolist() == [[1], [2], [3], [4], [5], [6]]
    assert inputs["interest"].values.tolist() == [False, False, True, True, False, True]


def test_arrays_from_python_are_graphs_of_one_size() -> None:
    arrays = {"nodes": np.ones((3, 2, 2)), "edges": np.array([[[0, 1]]] * 3), "weight": np.ones((3, 1))}
    feature = Graph("nodes", GraphOptions(edges="edges", edge_features="weight"))
    frame = pl.DataFrame(arrays)
    inputs = Preprocessor([feature]).fit([(frame, Place("t"))]).transform(frame)
    assert inputs["nodes"].padded(torch.arange(3)).shape == (3, 2, 2)
    assert inputs["edges"].padded(torch.arange(3)).tolist() == [[[1, 2], [2, 1]]] * 3


def test_it_survives_json() -> None:
    before = fitted()
    after = Preprocessor.from_json(json.loads(json.dumps(before.to_json())))
    assert after.schema == before.schema
    assert batch(after, [0, 1, 2]) == batch(before, [0, 1, 2])


@pytest.mark.parametrize(
    "rows, message",
    [
        ({"nodes": [[[1.0, 2.0]], [], [[1.0, 2.0]]]}, "new rows, row 1: column 'nodes' has no node"),
        ({"nodes": [ROWS["nodes"][0], None, ROWS["nodes"][2]]}, "row 1: column 'nodes' is missing"),
        (
            {"nodes": [*ROWS["nodes"][:2], [[5.0, 0.0], [6.0]]]},
            "row 2: column 'nodes' has an item of 1 numbers.*2 each",
        ),
        ({"nodes": [*ROWS["nodes"][:2], [[5.0, 0.0], None]]}, "row 2: column 'nodes' has an item of no numbers"),
        ({"nodes": [*ROWS["nodes"][:2], [[5.0, 0.0], [float("nan"), 1.0]]]}, "row 2: .* missing or infinite number"),
        ({"nodes": [["a"], ["b"], ["c"]]}, "column 'nodes' has type .*allowed: lists of numbers|item of 1 numbers"),
        ({"nodes": ["a", "b", "c"]}, "column 'nodes' has type String; allowed: a list a row"),
        (
            {"edges": [[[0, 1], [1, 3]], [], [[1, 0]]]},
            r"row 0: column 'edges' names the node \[1.0, 3.0\].*from 0 to 2",
        ),
        ({"edges": [[[0, 1], [1, 2]], [], [[-1, 0]]]}, "row 2: column 'edges' names the node"),
        ({"edges": [[[0.0, 1.0], [1.0, 0.5]], [], [[1.0, 0.0]]]}, "row 0: column 'edges' names the node"),
        ({"edges": [[[0, 1]], [], [[1, 0]]]}, "row 0: 1 pairs in column 'edges', but 2 in 'weight'; allowed: as many"),
        ({"edges": [[[0, 1, 2]], [], []]}, "row 0: column 'edges' has an item of 3 numbers; allowed: 2 each"),
        ({"about": [[0], [], [1]]}, "row 1: column 'about' names no node"),
        ({"about": [[0], [1], [1]]}, "row 1: column 'about' names the node .*from 0 to 0, as the row has 1 nodes"),
    ],
)
def test_what_is_no_graph_is_refused_with_its_row(rows: dict[str, list[Any]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        batch(fitted(), [0], **rows)


def test_training_rows_without_a_node_or_without_features_of_edges() -> None:
    feature = Graph("nodes", GraphOptions.model_validate(OPTIONS))
    nothing = pl.DataFrame({"nodes": [[]], "edges": [[]], "weight": [[]], "about": [[]]})
    with pytest.raises(DataError, match="column 'nodes' has no node"):
        Preprocessor([feature]).fit([(nothing, Place("t"))])
    single = pl.DataFrame({"nodes": [[[1.0]]], "edges": [[]], "weight": [[]], "about": [[0]]})
    with pytest.raises(DataError, match="column 'weight' has no number in any training row"):
        Preprocessor([feature]).fit([(single, Place("t"))])


def loaded(**spec: Any) -> Any:
    rows = {name: values * 8 for name, values in ROWS.items()} | {"label": [0, 1, 1] * 8}
    features = {"nodes": {"kind": "graph", **OPTIONS}}
    options = {"features": features, "split": {"fractions": [0.5, 0.25, 0.25]}, **spec}
    source = DataSpec.model_validate({"sources": {"data": options}})
    task = Task(name="label", kind="binary")
    return load_data(source, [task], data_dir=None, beside=None, datasets={"data": pl.DataFrame(rows)})


def test_the_columns_beside_it_are_no_features_of_their_own() -> None:
    data = loaded()
    assert data.sources["data"].schema.graph == GraphWidths(2, 1)
    assert data.sources["data"].schema.shapes == {}
    inputs = data.sources["data"].splits["train"].batch([0, 1, 2]).inputs
    assert set(inputs) == {"nodes", "node_mask", "interest", "edges", "edge_features"}


def test_a_part_of_a_graph_has_no_kind_of_its_own() -> None:
    graph = {"kind": "graph", **OPTIONS}
    for column, features in (
        ("edges", {"edges": "vector", "nodes": graph}),
        ("nodes", {"nodes": {**graph, "interest": "nodes"}}),
    ):
        with pytest.raises(DataError, match=f"features.{column}: it is part of the feature 'nodes', and none of its"):
            loaded(features=features)


def test_a_label_is_no_part_of_a_graph() -> None:
    with pytest.raises(DataError, match=r"features\.label: a label, .* is no feature"):
        loaded(features={"nodes": {"kind": "graph", **OPTIONS, "interest": "label"}})


def test_batches_whose_largest_graphs_differ_are_joined_as_if_read_together() -> None:
    """As a streamed table does where a batch ends one buffer and begins the next."""
    rows = loaded().sources["data"].splits["train"]
    sizes = rows.inputs["nodes"].offsets.diff()
    small, large = [int(position) for position in (sizes.argmin(), sizes.argmax())]
    both = joined(rows.batch([small]), rows.batch([large]))
    for key, values in rows.batch([small, large]).inputs.items():
        assert torch.equal(both.inputs[key], values)


def test_a_source_has_one_graph() -> None:
    features = {name: {"kind": "graph", "edges": "edges"} for name in ("nodes", "weight")}
    with pytest.raises(DataError, match="columns nodes, weight would all be the input 'nodes'; drop all but one"):
        loaded(features=features, drop=["about"])
