"""The graph network against its formula, edge by edge, and what it must not depend on."""

from typing import Any

import pytest
import torch
from tests.sharing.models import GRAPHS, graph_inputs
from torch import Tensor, nn

from polytask.core.errors import BadValue, MissingInput
from polytask.core.inputs import GraphWidths, InputSchema
from polytask.sharing import ModelSpec, build_model
from polytask.sharing.encoders.contract import build


def network(**options: Any) -> nn.Module:
    return build(ModelSpec(encoder={"kind": "gnn", "width": 5, "layers": 2, **options}).encoder, GRAPHS).double().eval()


def in_float64(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: values.double() if values.is_floating_point() else values for key, values in inputs.items()}


def states_of(tensors: dict[str, Tensor], inputs: dict[str, Tensor], row: int, aggregate: str) -> Tensor:
    """One graph, node by node and edge by edge."""
    nodes = inputs["nodes"][row][inputs["node_mask"][row]]
    h = nodes @ tensors["embedding.weight"].T + tensors["embedding.bias"]
    for layer in (0, 1):
        at = f"layers.{layer}"
        read, degree = torch.zeros_like(h), torch.zeros(len(h), 1)
        for (one, other), features in zip(inputs["edges"][row], inputs["edge_features"][row], strict=True):
            if one == 0:
                continue
            message = (h[one - 1] + tensors[f"{at}.edges.weight"] @ features).clamp(min=0)
            read[other - 1] += message
            degree[other - 1] += 1
        if aggregate == "mean":
            read = read / degree.clamp(min=1)
        own = h @ tensors[f"{at}.update.own.weight"].T + tensors[f"{at}.update.own.bias"]
        x = own + read @ tensors[f"{at}.neighbours.weight"].T
        x = (x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True, correction=0) + 1e-5).sqrt()
        h = (x * tensors[f"{at}.update.norm.weight"] + tensors[f"{at}.update.norm.bias"]).clamp(min=0)
    return h


@pytest.mark.parametrize("aggregate", ["sum", "mean"])
@pytest.mark.parametrize("pooling", ["sum", "mean", "none"])
def test_equals_its_formula(aggregate: str, pooling: str) -> None:
    encoder, inputs = network(aggregate=aggregate, pooling=pooling), in_float64(graph_inputs(4))
    found, tensors = encoder(inputs), encoder.state_dict()
    for row in range(4):
        expected = states_of(tensors, inputs, row, aggregate)
        if pooling == "none":
            torch.testing.assert_close(found.values[row][found.mask[row]], expected, rtol=1e-12, atol=1e-12)
            assert not found.values[row][~found.mask[row]].any()
            continue
        chosen = expected[inputs["interest"][row][inputs["node_mask"][row]]]
        pooled = chosen.sum(0) if pooling == "sum" else chosen.mean(0)
        torch.testing.assert_close(found[row], pooled, rtol=1e-12, atol=1e-12)


def test_neither_padding_nor_other_rows_nor_the_order_of_nodes_and_edges_matter() -> None:
    encoder, inputs = network(), in_float64(graph_inputs(5))
    whole = encoder(inputs)
    alone = {key: values[2:3] for key, values in inputs.items()}
    padded = {key: torch.cat([values, torch.zeros_like(values)], dim=1) for key, values in alone.items()}
    order = torch.tensor([1, 0, *range(2, alone["nodes"].shape[1])])
    swapped = {key: alone[key][:, order] for key in ("nodes", "node_mask", "interest")}
    places = torch.cat([torch.zeros(1, dtype=torch.int64), order + 1])  # the order is its own inverse
    swapped |= {"edges": places[alone["edges"]].flip(1), "edge_features": alone["edge_features"].flip(1)}
    for same in (alone, padded, swapped):
        torch.testing.assert_close(encoder(same)[0], whole[2])


def test_the_same_bits_again_and_no_edge_features() -> None:
    schema = InputSchema(graph=GraphWidths(3, 0))
    encoder = build(ModelSpec(encoder={"kind": "gnn", "normalization": "none"}).encoder, schema)
    inputs = {key: values for key, values in graph_inputs(6).items() if key != "edge_features"}
    assert torch.equal(encoder(inputs), encoder(inputs))
    assert InputSchema.from_json({**schema.to_json(), "graph": [3, 0]}) == schema
    assert "edges" not in dict(encoder.layers[0].named_children())


@pytest.mark.parametrize("sharing", ["hard", "mmoe", "film", "cross_stitch"])
def test_architectures_that_read_a_vector_work_on_graphs(sharing: str) -> None:
    model = build_model(
        ModelSpec(encoder={"kind": "gnn", "width": 8}, sharing=sharing), GRAPHS, {"a": 1, "b": 3}, seed=0
    )
    outputs = model(graph_inputs(4))
    assert [list(output.shape) for output in outputs.values()] == [[4], [4, 3]]
    sum(output.sum() for output in outputs.values()).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_architectures_that_read_a_sequence_take_the_nodes() -> None:
    encoder = {"kind": "gnn", "width": 8, "pooling": "none"}
    model = build_model(ModelSpec(encoder=encoder, sharing="task_tokens"), GRAPHS, {"a": 1, "b": 3}, seed=0).eval()
    inputs = graph_inputs(4)
    alone = model({key: values[1:2] for key, values in inputs.items()})
    torch.testing.assert_close(alone["b"], model(inputs)["b"][1:2])
    with pytest.raises(BadValue, match=r"a sequence \[rows, tokens, width\]"):
        build_model(ModelSpec(encoder=encoder, sharing="hard"), GRAPHS, {"a": 1}, seed=0)


def test_inputs_that_are_no_graphs() -> None:
    encoder, inputs = network(), in_float64(graph_inputs(2))
    for key, wrong, message in (
        ("nodes", inputs["nodes"][:, :, :2], r"input 'nodes' is .*\[rows, nodes, 3\]"),
        ("node_mask", inputs["node_mask"].long(), "input 'node_mask' is .*torch.int64.* torch.bool"),
        ("interest", inputs["interest"][:, :1], "input 'interest'"),
        ("edges", inputs["edges"][:, :, 0], r"input 'edges' is .*\[2, edges, 2\]"),
        ("edges", inputs["edges"] * 9, "input 'edges', row 0 is .* places of nodes"),
        ("edge_features", inputs["edge_features"][:, :1], r"input 'edge_features' is .*as the edges"),
    ):
        with pytest.raises(BadValue, match=message):
            encoder({**inputs, key: wrong})
    with pytest.raises(MissingInput, match="the model reads the input 'edges'"):
        encoder({key: values for key, values in inputs.items() if key != "edges"})
    table = InputSchema(shapes={"numeric": (3,)})
    with pytest.raises(MissingInput, match="encoder 'gnn' reads 'graph'; the source gives: numeric"):
        build(ModelSpec(encoder="gnn").encoder, table)
    with pytest.raises(BadValue, match="it would ignore numeric"):
        build(ModelSpec(encoder="gnn").encoder, InputSchema(shapes=table.shapes, graph=GraphWidths(3, 2)))
