"""Frozen layers' outputs are computed once and change nothing but the time."""

import numpy as np
import pytest
import torch
from tests.sharing.models import TEXT, TINY_BERT

from polytask.core.noise import Noise
from polytask.tasks.examples import Examples, Ragged
from polytask.training.devices import Devices
from polytask.training.features import FrozenFeatures
from polytask.training.spec import RunSpec

pytest.importorskip("transformers", reason="needs the extra 'text'")

ROWS = 70


def examples(source: str = "data") -> Examples:
    """Rows of 2 to 9 tokens."""
    noise = Noise(0, "texts", source)
    lengths = torch.from_numpy(2 + noise.integers(ROWS, 8))
    offsets = torch.tensor([0, *lengths.cumsum(0).tolist()])
    tokens = 5 + torch.from_numpy(noise.child("tokens").integers(int(offsets[-1]), 50))
    label = torch.from_numpy(noise.child("label").integers(ROWS, 2)).float()
    return Examples(
        inputs={"input_ids": Ragged(tokens, offsets), "attention_mask": Ragged(torch.ones_like(tokens), offsets)},
        labels={"a": label},
        present={"a": torch.ones(ROWS, dtype=torch.bool)},
        rows=torch.arange(ROWS),
        source=source,
    )


def model(trainable="none", sharing="hard", seed=0):
    from polytask.sharing import ModelSpec, build_model

    encoder = {"kind": "transformer", "config": TINY_BERT, "trainable": trainable}
    return build_model(ModelSpec(encoder=encoder, sharing=sharing), TEXT, {"a": 1, "b": 2}, {}, seed=seed)


@pytest.fixture
def devices() -> Devices:
    return Devices(RunSpec(device="cpu"))


@pytest.mark.parametrize("trainable", [{"last": 1}, {"last": 2}, "none"])
@pytest.mark.parametrize("sharing", ["hard", "single"])
def test_outputs_and_gradients_are_those_without_a_cache(devices, trainable, sharing):
    torch.manual_seed(0)
    network, rows = model(trainable, sharing).eval(), examples()
    cached = FrozenFeatures(network, devices, {}, 100).rows({"data": rows})["data"]
    assert "input_ids" not in cached.inputs
    index = torch.tensor([5, 0, 69, 33])
    results = []
    for source in (rows, cached):
        network.zero_grad()
        outputs = network(source.batch(index).inputs, ["a", "b"])
        (outputs["a"].square().sum() + outputs["b"].square().sum()).backward()
        grads = {name: parameter.grad for name, parameter in network.named_parameters() if parameter.grad is not None}
        results.append((outputs, grads))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-3, atol=1e-5)
    assert torch.equal(cached.batch(index).labels["a"], rows.batch(index).labels["a"])


def test_runs_on_the_same_rows_share_the_cache(devices, monkeypatch):
    from polytask.sharing.encoders.transformer import Transformer

    computed = []
    original = Transformer.precompute
    monkeypatch.setattr(Transformer, "precompute", lambda self, inputs: computed.append(1) or original(self, inputs))
    cache: dict = {}
    train, valid = examples("data"), examples("data")

    def rows_of(network, split):
        return FrozenFeatures(network, devices, cache, 100).rows({"data": split})["data"]

    first = rows_of(model({"last": 1}), train)
    once = len(computed)
    assert once == 2  # batches of 64
    assert rows_of(model({"last": 1}), train) is first
    assert len(computed) == once
    assert rows_of(model({"last": 1}), valid) is not first  # other rows of the same source
    assert rows_of(model({"last": 2}), train) is not first  # other layers
    assert rows_of(model({"last": 1}, seed=1), train) is not first  # other weights
    assert rows_of(model({"last": 1}), train) is first
    assert len(cache) == 4


def test_nothing_is_cached_where_nothing_is_frozen_or_it_is_too_large(devices):
    rows = examples()
    features = FrozenFeatures(model("all"), devices, {}, 100)
    assert features.rows({"data": rows})["data"] is rows
    features = FrozenFeatures(model({"last": 1}), devices, {}, 0)
    assert features.rows({"data": rows})["data"] is rows
    assert "more than run.feature_cache_mb: computed in every step instead" in features.remarks[0]
    by_task = model("none", {"kind": "film", "inner": ["model.encoder.layer.0.output"]})
    assert FrozenFeatures(by_task, devices, {}, 100).rows({"data": rows})["data"] is rows
    streamed = object()
    assert FrozenFeatures(model("none"), devices, {}, 100).rows({"data": streamed})["data"] is streamed


def test_a_training_run_takes_the_same_steps_with_and_without_cache(tmp_path, monkeypatch):
    from dataclasses import replace

    from tests.training.runs import events, job

    from polytask.training.loop import fit

    base = job(
        tasks={"click": "binary", "topic": "multiclass"},
        data__drop=["buy", "price"],
        train__optimizer={"kind": "sgd", "lr": 0.1},
    )
    texts = {}
    for split, rows in base.data.sources["data"].splits.items():
        lengths = np.array([3 + row % 5 for row in range(len(rows))])
        offsets = torch.tensor([0, *np.cumsum(lengths)])
        tokens = 5 + torch.from_numpy(Noise(0, split).integers(int(offsets[-1]), 50))
        mask = torch.ones_like(tokens)
        inputs = {"input_ids": Ragged(tokens, offsets), "attention_mask": Ragged(mask, offsets)}
        texts[split] = rows.with_inputs(inputs)
    monkeypatch.setattr(type(base), "schemas", {"data": TEXT})
    source = replace(base.data.sources["data"], splits=texts)
    encoder = {"kind": "transformer", "config": {**TINY_BERT, "hidden_dropout_prob": 0.0}, "trainable": {"last": 1}}
    encoder["config"]["attention_probs_dropout_prob"] = 0.0
    losses = []
    for name, bound in (("cached", 100), ("computed", 0)):
        spec = base.model.model_validate({"encoder": encoder})
        run = base.run.model_copy(update={"feature_cache_mb": bound})
        made = replace(base, data=replace(base.data, sources={"data": source}), model=spec, run=run)
        fit(made, tmp_path / name)
        losses.append([event["losses"] for event in events(tmp_path / name, "step")])
        messages = events(tmp_path / name, "message")
        assert any("feature_cache_mb" in event["text"] for event in messages) == (bound == 0)
    for cached, computed in zip(*losses, strict=True):
        assert cached == pytest.approx(computed, rel=1e-3)
