"""Widths that are chosen after training: what they compute and cost, the distillation, and the search."""

import pytest
import torch
from tests.sharing.models import OUTPUTS, table_inputs, table_model
from torch.utils.flop_counter import FlopCounterMode

from polytask.core.errors import BadValue, UnknownName
from polytask.sharing import MultiTaskModel
from polytask.sharing.slimmable import Widths
from polytask.sharing.tape import listen


def slimmable(**options: object) -> MultiTaskModel:
    sizes = {"hidden_sizes": [16, 12], "decoder_sizes": [8, 4], "shares": [0.25, 0.5, 1.0]}
    return table_model({"kind": "slimmable", **sizes, **options}).eval()


def test_a_narrow_model_uses_the_first_channels() -> None:
    model, inputs = slimmable(), table_inputs(5)
    model.sharing.configure(0.5, {"topic": 0.25})
    x, tensors = model.representation(inputs), model.sharing.state_dict()
    for layer, reads, size in (("layers.0", 8, 8), ("layers.1", 8, 6), ("decoders.topic.0", 6, 2)):
        x = torch.relu(x @ tensors[f"{layer}.weight"][:size, :reads].T + tensors[f"{layer}.bias"][:size])
    x = torch.relu(x @ tensors["decoders.topic.1.weight"][:, :2].T + tensors["decoders.topic.1.bias"])
    torch.testing.assert_close(model.sharing(inputs, ["topic"])["topic"], x)
    wide = model.sharing(inputs, ["click"])["click"]
    model.sharing.configure(0.5)
    assert torch.equal(model.sharing(inputs, ["click"])["click"], wide)
    assert not torch.equal(model.sharing(inputs, ["topic"])["topic"], x)


def test_multiply_adds_are_those_that_are_counted() -> None:
    model, inputs = slimmable(), table_inputs(3)
    for widths in (Widths(1.0, {}), Widths(0.25, {"click": 0.5}), Widths(0.5, dict.fromkeys(OUTPUTS, 0.25))):
        model.sharing.configure(widths.shared, widths.tasks)
        z = model.representation(inputs)
        with FlopCounterMode(display=False) as counter:
            model.sharing.features(z, list(OUTPUTS))
        assert counter.get_total_flops() == 2 * 3 * model.sharing.multiply_adds(widths)


def test_training_draws_widths_and_draws_narrow_features_to_whole_ones() -> None:
    model, inputs = slimmable(shares=[0.5], distillation=3.0).train(), table_inputs(6)
    with listen() as tape:
        model(inputs, ["click", "topic"])
    sharing, z = model.sharing, model.representation(inputs)
    narrow = sharing._through(sharing.layers, z, 0.5)
    whole = sharing._through(sharing.layers, z, 1.0)
    apart = (narrow - whole[:, :6]).square().mean()
    torch.testing.assert_close(tape.penalties["click"], 3 * apart / 2)
    tape.penalties["click"].backward()
    assert sharing.layers[0].weight.grad[:8].ne(0).any()
    assert sharing.layers[0].weight.grad[8:].eq(0).all()  # the whole is the teacher
    model = slimmable().train()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        seen = {tuple(model.sharing(inputs, ["click"])["click"].flatten().tolist()) for _ in range(20)}
    assert len(seen) > 3


def test_the_search_pays_the_preferred_task_more_within_the_budget() -> None:
    sharing = slimmable().sharing
    assert sharing.search(dict.fromkeys(OUTPUTS, 1.0), 1.0).shared == 1.0
    for budget in (0.3, 0.5, 0.8):
        widths = sharing.search({"click": 4.0, "topic": 1.0, "assays": 1.0}, budget)
        assert sharing.multiply_adds(widths) <= budget * sharing.multiply_adds(Widths(1.0, {}))
        assert widths.tasks["click"] >= widths.tasks["topic"] == widths.tasks["assays"]
    assert any(
        sharing.search({"click": 4.0, "topic": 1.0, "assays": 1.0}, budget / 20).tasks["click"]
        > sharing.search({"click": 4.0, "topic": 1.0, "assays": 1.0}, budget / 20).tasks["topic"]
        for budget in range(6, 20)
    )


def test_what_does_not_fit() -> None:
    sharing = slimmable().sharing
    with pytest.raises(BadValue, match=r"a width of 'slimmable' is 0.3; allowed: one of 0.25, 0.5, 1.0, 1"):
        sharing.configure(0.3)
    with pytest.raises(UnknownName, match="configure: no task 'clik'"):
        sharing.configure(0.5, {"clik": 0.5})
    with pytest.raises(UnknownName, match="preferences: no task 'clik'"):
        sharing.search({"clik": 1.0}, 0.5)
    with pytest.raises(BadValue, match=r"allowed: a positive number for each of click, topic, assays"):
        sharing.search({"click": 1.0}, 0.5)
    with pytest.raises(BadValue, match=r"budget is 0.01; allowed: more; the narrowest of all takes 0\.\d+ of"):
        sharing.search(dict.fromkeys(OUTPUTS, 1.0), 0.01)
