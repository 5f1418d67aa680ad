"""Conditioning inside an encoder: where it acts, what it reads, what it refuses."""

import copy
from typing import Any

import pytest
import torch
from tests.sharing.models import (
    IMAGES,
    OUTPUTS,
    PICTURES,
    SHARING_OPTIONS,
    TEXT,
    TINY_BERT,
    model_of,
    table_inputs,
    table_model,
    text_inputs,
    uniform,
)
from torch import Tensor, nn

from polytask.core.errors import BadValue, MissingInput
from polytask.core.inputs import InputSchema
from polytask.sharing import ModelSpec, MultiTaskModel, build_model, describe

BY_LAYER = {
    "film": {"deviation": 0.5},
    "task_embedding": {"embedding": 3},
    "channel_masks": {"active": 0.5, "exponent": 1},
    "yolor": {"combine": "concatenate", "bases": 2, "deviation": 0.5},
}
by_layer = pytest.mark.parametrize("kind", BY_LAYER)


def model_on(encoder: dict[str, Any], schema: InputSchema, kind: str, inner: list[str]) -> MultiTaskModel:
    sharing = {"kind": kind, "hidden_sizes": [], "inner": inner, **BY_LAYER[kind]}
    spec = ModelSpec.model_validate({"encoder": encoder, "sharing": sharing})
    return build_model(spec, schema, {"click": 1, "topic": 2}, seed=0).eval()


def answers_by_task(model: MultiTaskModel, inputs: dict[str, Tensor]) -> None:
    """Tasks read different features, whether they are asked together or alone."""
    with torch.no_grad():
        together = model.sharing(inputs, ["click", "topic"])
        assert not torch.allclose(together["click"], together["topic"])
        for task, features in together.items():
            torch.testing.assert_close(model.sharing(inputs, [task])[task], features)


@by_layer
def test_vectors_tokens_and_maps_are_changed_by_channel(kind: str) -> None:
    text = model_on({"kind": "transformer", "config": TINY_BERT}, TEXT, kind, ["model.encoder.layer.[01].output"])
    assert text.sharing.widths[-2:] == [16, 16]
    answers_by_task(text, text_inputs([4, 7, 2]))
    pictures = model_on({"kind": "conv", "channels": [4, 8]}, IMAGES, kind, ["convolutions.1"])
    assert pictures.sharing.widths[-1] == 4
    answers_by_task(pictures, {"image": uniform(0, 3, 1, 12, 12)})
    pixels = model_on({"kind": "pyramid", "channels": [4, 8]}, PICTURES, kind, ["levels.1"])
    assert pixels.sharing.widths == [8]
    answers_by_task(pixels, {"image": uniform(0, 2, 3, 8, 12)})


@pytest.mark.parametrize("bases", [None, 2])
def test_latents_stand_behind_the_encoder_and_every_further_layer(bases: int | None) -> None:
    options = {"kind": "yolor", "combine": "add", "bases": bases, "hidden_sizes": [6, 5], "deviation": 0.5}
    model, inputs = table_model(options), table_inputs(4)
    sharing, z = model.sharing, model.representation(inputs)
    own = [sharing.latents["topic"].vector, *(latent.vector for latent in sharing.further_latents["topic"])]
    if bases is not None:
        every = [sharing.bases, *(shared.bases for shared in sharing.further)]
        own = [weights @ of for weights, of in zip(own, every, strict=True)]
    assert [len(latent) for latent in own] == [8, 6, 5]
    x = z + own[0]
    for layer, latent in zip(sharing.layers, own[1:], strict=True):
        x = torch.relu(layer(x) + latent)
    torch.testing.assert_close(sharing(inputs, ["topic"])["topic"], x)
    assert (
        sharing.condition("topic")
        == f"a latent of 8 + 6 + 5{f', mixed from {bases}' if bases else ''}, added to what 3 layers give"
    )


def test_layers_above_a_map_are_changed_at_every_pixel() -> None:
    spec = ModelSpec.model_validate(
        {"encoder": {"kind": "segnet", "channels": [4, 6], "convolutions": [1, 1]}, "sharing": SHARING_OPTIONS["film"]}
    )
    model, image = build_model(spec, PICTURES, OUTPUTS, seed=0).eval(), uniform(0, 2, 3, 8, 12)
    z, sharing = model.representation({"image": image}), model.sharing
    for layer in (0, 1):
        part = sharing.modulations["topic"][layer]
        z = torch.relu(sharing.layers[layer](z) * part.scale + part.shift)
    torch.testing.assert_close(sharing({"image": image}, ["topic"])["topic"], z)


def test_a_copy_changes_its_own_layers() -> None:
    model, inputs = model_of("film inside a table").eval(), table_inputs(4)
    before, twin = model(inputs)["click"], copy.deepcopy(model)
    with torch.no_grad():
        for part in twin.sharing.modulations["click"]:
            part.scale.zero_()
            part.shift.zero_()
    assert torch.equal(model(inputs)["click"], before)
    assert torch.equal(twin.sharing(inputs, ["click"])["click"], torch.zeros(4, 6))


@pytest.mark.parametrize(
    "kind, words",
    {
        "film": "scales and shifts of 7 + 6 channels",
        "task_embedding": "a vector of 3, read by 2 layers",
        "channel_masks": "channels 3 to 6 of 7, channels 3 to 5 of 6",
        "yolor": "a latent of 8, mixed from 2, joined to what the encoder gives",
        "prefix": "3 vectors before the input's tokens",
        "task_tokens": "a token of 8 among the input's",
        "dtrn": "a vector of 3, which scales and shifts the transformer's normalisations",
        "apem": "a vector of 8, which weighs the tokens",
    }.items(),
)
def test_a_description_says_what_tells_the_network_its_task(kind: str, words: str) -> None:
    told = describe(model_of(kind))["conditioning"]
    assert list(told) == list(OUTPUTS)
    assert told["topic"] == words
    assert "conditioning" not in describe(model_of("hard"))


# ---- what does not fit


class Pairs(nn.Module):
    """An encoder whose inner layer gives two tensors, and one of whose layers is never called."""

    width = 5

    def __init__(self) -> None:
        super().__init__()
        self.pair, self.idle = Two(), nn.Linear(5, 5)

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        return self.pair(inputs["numeric"])[0]


class Two(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


@pytest.mark.parametrize("layer, gives", [("pair", "'tuple'"), ("idle", "'NoneType'")])
def test_a_layer_that_gives_no_tensor(layer: str, gives: str) -> None:
    spec = ModelSpec.model_validate({"sharing": {"kind": "film", "inner": [layer]}})
    with pytest.raises(
        BadValue, match=rf"'film': inner: what '{layer}' gives is {gives}; allowed: a module that gives"
    ):
        build_model(spec, InputSchema(shapes={"numeric": (5,)}), {"click": 1}, seed=0, encoder=Pairs)


def test_places_that_are_not_there() -> None:
    with pytest.raises(BadValue, match=r"'film': inner is 'layer.9'; allowed: a pattern of .*layers.0"):
        table_model({"kind": "film", "inner": ["layer.9"]})
    with pytest.raises(
        BadValue, match=r"'film': hidden_sizes and inner is \[\]; allowed: a shared layer, or a layer of"
    ):
        table_model({"kind": "film", "hidden_sizes": []})
    spec = ModelSpec.model_validate({"encoder": {"kind": "pyramid", "channels": [4, 8]}, "sharing": {"kind": "film"}})
    with pytest.raises(BadValue, match=r"'film': hidden_sizes is \[64, 64\]; allowed: \[\] on a pyramid"):
        build_model(spec, PICTURES, OUTPUTS, seed=0)


def test_an_encoder_that_works_by_task_has_no_common_representation() -> None:
    model, inputs = model_of("film inside a table"), table_inputs(2)
    with pytest.raises(MissingInput, match="sharing 'film' with `inner` runs the encoder once a task"):
        model.representation(inputs)
    with pytest.raises(MissingInput, match="an encoder whose inner layers a task changes was called for no task"):
        model.sharing.encoder(inputs)
