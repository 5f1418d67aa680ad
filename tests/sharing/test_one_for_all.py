"""One network and one readout for tasks on nodes, links and graphs: what a task reads, and how it is trained."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.sharing.models import GRAPHS, TABLE, graph_inputs, uniform

import polytask
from polytask.core.errors import BadValue
from polytask.core.outputs import OutputSchema
from polytask.sharing import ModelSpec, MultiTaskModel, build_model, describe

GNN = {"kind": "gnn", "width": 6, "layers": 2}
OUTPUTS = {"community": 3, "same": 1}


def model_of(outputs: dict[str, Any] = OUTPUTS, encoder: Any = GNN, **rest: Any) -> MultiTaskModel:
    return build_model(ModelSpec(encoder=encoder, sharing="one_for_all"), GRAPHS, outputs, seed=0, **rest).eval()


def test_a_task_has_a_vector_a_class_and_one_for_its_prompt_and_no_more() -> None:
    counts = describe(model_of({"community": OutputSchema("choice", ("a", "b", "c")), "same": 1}))
    assert counts["private"] == {"community": 6 * (3 + 1), "same": 6 * (1 + 1)}
    assert set(counts["conditioning"]) == set(OUTPUTS)


def test_the_answer_is_about_the_nodes_of_interest_and_what_they_can_see() -> None:
    """A path of six: with two layers the first node sees the next two, and no more."""
    inputs = graph_inputs(1)
    path = torch.tensor([[place, place + 1] for place in range(1, 6)])
    path = torch.cat([path, path.flip(1)])
    inputs |= {"node_mask": torch.ones(1, 6, dtype=torch.bool), "nodes": uniform(0, 1, 6, 3), "edges": path[None]}
    inputs |= {"edge_features": torch.ones(1, 10, 2), "interest": torch.arange(6)[None] == 0}
    model = model_of()
    found = model(inputs)["community"]
    for place in range(6):
        other = {**inputs, "nodes": inputs["nodes"].clone()}
        other["nodes"][0, place] += 1
        assert torch.equal(model(other)["community"], found) == (place > 2)
    for interest in ([1], [0, 1], range(6)):
        asked = torch.zeros(1, 6, dtype=torch.bool)
        asked[0, list(interest)] = True
        assert not torch.equal(model({**inputs, "interest": asked})["community"], found)


def test_outputs_come_from_what_the_prompt_reads_in_each_layer() -> None:
    model, inputs = model_of(), graph_inputs(5)
    representation = model.representation(inputs)
    assert representation.shape == (5, 3 * 6) == (5, model.sharing.representation_width)
    for task, outputs in model.from_representation(representation).items():
        torch.testing.assert_close(outputs, model(inputs)[task])


def test_all_tasks_share_the_readout_and_the_order_of_tasks_changes_nothing() -> None:
    model, inputs = model_of(), graph_inputs(4)
    turned = model(inputs, ["same", "community"])
    assert list(turned) == ["same", "community"]
    assert list(turned["same"].shape) == [4]
    for task, outputs in model(inputs).items():
        torch.testing.assert_close(outputs, turned[task])


def test_without_layers_in_the_encoder_the_prompt_reads_the_nodes_as_they_are() -> None:
    model = model_of(encoder={**GNN, "layers": 0, "pooling": "none"})
    outputs = model(graph_inputs(3))
    sum(output.sum() for output in outputs.values()).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_what_it_refuses() -> None:
    with pytest.raises(BadValue, match=r"layers of the head of task 'same' is .*one readout for all tasks"):
        model_of(heads={"same": [8]})
    with pytest.raises(BadValue, match="sharing 'one_for_all': the encoder is 'Tabular'; allowed: gnn"):
        build_model(ModelSpec(encoder="tabular", sharing="one_for_all"), TABLE, OUTPUTS, seed=0)
    with pytest.raises(
        BadValue, match="the encoder's pooling is 'sum'; allowed: mean, which its prompts read, or none"
    ):
        model_of(encoder={**GNN, "pooling": "sum"})


@pytest.mark.parametrize("rule", ["uncertainty", "upgrad", "graddrop"])
def test_three_sources_train_by_rules_on_losses_on_the_gram_matrix_and_on_elements(rule: str, tmp_path: Path) -> None:
    settings = {"data.rows": {"train": 24, "valid": 12, "test": 12}, "train.steps": 2, "train.epochs": None}
    settings |= {"train.batch_size": 12, "train.rule": rule}
    results = polytask.train("graphs", out=tmp_path / "run", settings=settings)
    assert results["steps"] == 2
    rows = {"nodes": [[[1, 0, 0, 0], [0, 0, 0, 1]]], "edges": [[[0, 1]]], "interest": [[1]]}
    predicted = polytask.load(tmp_path / "run").predict(rows)
    assert sum(predicted[f"community.{label}"][0] for label in range(3)) == pytest.approx(1)
    assert 0 < predicted["same"][0] < 1
