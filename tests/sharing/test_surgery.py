"""Layers that are joined: which ones, what the new layer computes, and that everything else stays."""

import pytest
import torch
from tests.sharing.models import OUTPUTS, TABLE, table_inputs, table_model

from polytask.core.errors import BadValue
from polytask.sharing import ModelSpec, MultiTaskModel, build_model
from polytask.sharing.layer_groups import similarity
from polytask.sharing.surgery import group_layers


def towers() -> MultiTaskModel:
    """click and topic have nearly the same first layer, assays another."""
    model = table_model({"kind": "layer_groups", "hidden_sizes": [6, 6]})
    first = model.sharing.levels[0]
    with torch.no_grad():
        first["topic"].weight.copy_(first["click"].weight * 1.01)
        first["topic"].bias.copy_(first["click"].bias)
    return model


def test_similarity_by_hand() -> None:
    x = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 2.0], [0.0, -2.0]])
    turn = torch.tensor([[0.6, 0.8], [-0.8, 0.6]])
    assert similarity(x, 3 * x @ turn + 5) == pytest.approx(1)  # neither turning nor scale nor shift matters
    # one channel of x: |x^T y|^2 = 2^2; |x^T x| = sqrt(2^2 + 8^2), |y^T y| = 2
    assert similarity(x, x[:, :1]) == pytest.approx(4 / (68**0.5 * 2))
    assert similarity(x, torch.ones(4, 2)) == 0


def test_alike_layers_become_one_and_the_rest_stays() -> None:
    model, inputs = towers(), table_inputs(40)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    after = group_layers(model, inputs, level=0, threshold=0.95)
    assert after.spec.sharing.groups == ({"click+topic": ("click", "topic")}, {})
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    tensors = after.state_dict()
    gone = {f"sharing.levels.0.{task}.{part}" for task in ("click", "topic") for part in ("weight", "bias")}
    assert set(before) - set(tensors) == gone
    assert all(torch.equal(tensors[name], before[name]) for name in set(before) - gone)
    with torch.no_grad():
        torch.testing.assert_close(after(inputs)["assays"], model(inputs)["assays"])
        torch.testing.assert_close(after(inputs)["click"], model(inputs)["click"], atol=0.02, rtol=0.02)


def test_layers_that_read_the_same_rows_are_replaced_by_their_mean() -> None:
    model = towers()
    first = model.sharing.levels[0]
    after = group_layers(model, table_inputs(40), level=0, threshold=0.95).sharing.levels[0]["click+topic"]
    torch.testing.assert_close(after.weight, (first["click"].weight + first["topic"].weight) / 2)


def test_a_layer_that_reads_two_streams_imitates_both_in_least_squares() -> None:
    model, inputs = towers().double(), table_inputs(40)
    inputs["numeric"] = inputs["numeric"].double()
    after = group_layers(model, inputs, level=1, threshold=0.0).sharing.levels[1]["click+topic+assays"]
    streams = model.sharing.streams(model.representation(inputs), list(OUTPUTS))
    rows = torch.cat([streams[1][task] for task in OUTPUTS]).detach()
    wanted = torch.cat([model.sharing.levels[1][task](streams[1][task]) for task in OUTPUTS]).detach()
    left = after(rows) - wanted
    joined = torch.cat([rows, torch.ones(len(rows), 1, dtype=rows.dtype)], dim=1)
    normal_equations = joined.mT @ left
    torch.testing.assert_close(normal_equations, torch.zeros_like(normal_equations), atol=1e-8, rtol=0)


def test_a_model_after_surgery_is_built_again_and_learns() -> None:
    after, inputs = group_layers(towers(), table_inputs(40), level=0, threshold=0.95), table_inputs(5)
    spec = ModelSpec.model_validate(after.spec.model_dump(mode="json"))
    again = build_model(spec, TABLE, OUTPUTS, {"topic": [9]}, seed=1)
    again.load_state_dict(after.state_dict())
    assert all(torch.equal(output, again(inputs)[task]) for task, output in after(inputs).items())
    sum(output.sum() for output in after(inputs).values()).backward()
    assert after.sharing.levels[0]["click+topic"].weight.grad is not None
    deeper = group_layers(after, table_inputs(40), level=1, threshold=0.0)
    assert deeper.spec.sharing.groups == ({"click+topic": ("click", "topic")}, {"click+topic+assays": tuple(OUTPUTS)})


def test_what_does_not_fit() -> None:
    inputs = table_inputs(4)
    with pytest.raises(BadValue, match="the model's sharing is 'hard'; allowed: layer_groups"):
        group_layers(table_model("hard"), inputs, level=0)
    with pytest.raises(BadValue, match="level is 2; allowed: 0 to 1"):
        group_layers(towers(), inputs, level=2)
    with pytest.raises(BadValue, match=r"threshold is 1.5; allowed"):
        group_layers(towers(), inputs, level=0, threshold=1.5)
    with pytest.raises(BadValue, match="levels of groups is 1; allowed: that of hidden_sizes, 2"):
        table_model({"kind": "layer_groups", "groups": [{}]})
