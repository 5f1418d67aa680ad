"""Feature pyramids, the models that give them, decoders, and what each says about a mistake."""

import re
from enum import StrEnum
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.sharing.models import DECODER, OUTPUTS, PICTURES, TABLE, inputs_of, model_of, uniform
from torch import Tensor, nn

from polytask.core.errors import BadValue, MissingInput
from polytask.core.inputs import InputSchema
from polytask.sharing import ATTACHMENTS, SHARING, ModelSpec, MultiTaskModel, build_model
from polytask.sharing.encoders.contract import build, build_from_factory
from polytask.sharing.encoders.levels import hidden_states_pyramid, packed, timm_pyramid, unpacked
from polytask.sharing.initialise import initialise
from polytask.sharing.tape import listen

DENSE = [kind for kind in SHARING.names() if SHARING.find(kind).reads == ("pyramid",)]


class Stages(nn.Module):
    """A network with the interface of timm's `features_only` models: no schema, `feature_info`, a list of maps."""

    def __init__(self, channels: tuple[int, ...] = (4, 6)) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            nn.Conv2d(before, after, 3, stride=2, padding=1)
            for before, after in zip((3, *channels), channels, strict=False)
        )
        self.feature_info = SimpleNamespace(channels=lambda: list(channels), reduction=lambda: [2, 4])

    def forward(self, x: Tensor) -> list[Tensor]:
        found = []
        for stage in self.stages:
            x = stage(x)
            found.append(x)
        return found


class Given(nn.Module):
    """An encoder that says one thing and gives another."""

    gives = "pyramid"

    def __init__(self, maps: Any, channels: Any = (4, 6), strides: Any = (2, 4)) -> None:
        super().__init__()
        self.maps, self.channels, self.strides = maps, channels, strides

    def forward(self, inputs: dict[str, Tensor]) -> Any:
        return self.maps


MAPS = [torch.zeros(2, 4, 4, 6), torch.zeros(2, 6, 2, 3)]


# ---- encoders that give a pyramid


def test_a_pyramid_halves_the_sides_level_by_level() -> None:
    options = ModelSpec.model_validate({"encoder": {"kind": "pyramid", "channels": [4, 6, 8]}}).encoder
    encoder: Any = build(options, InputSchema(shapes={"image": (3, 9, 16)}))
    assert encoder.shapes == [(4, 5, 8), (6, 3, 4), (8, 2, 2)]  # odd sides are rounded up
    assert (encoder.size, encoder.strides) == ((9, 16), (2, 4, 8))
    assert encoder.width == 4 * 40 + 6 * 12 + 8 * 4
    levels = encoder({"image": uniform(0, 3, 3, 9, 16)})
    again = unpacked(packed(levels), encoder.shapes)
    assert all(torch.equal(one, other) for one, other in zip(levels, again, strict=True))


@pytest.mark.parametrize(
    "maps, channels, strides, message",
    [
        (MAPS, (4,), (2, 4), "channels and strides is [(4,), (2, 4)]; allowed: a number above 0 a map in each"),
        (MAPS, None, None, "channels and strides is [None, None]"),
        (MAPS, (4, 6), (4, 2), "strides is [4, 2]; allowed: the finest map first"),
        (MAPS, (4, 5), (2, 4), "[[2, 4, 4, 6], [2, 6, 2, 3]]; allowed: [[2, 4, 4, 6], [2, 5, 2, 3]]"),
        (MAPS, (4, 6), (2, 8), "allowed: [[2, 4, 4, 6], [2, 6, 1, 2]], as channels and strides say"),
        (MAPS[:1], (4, 6), (2, 4), "output for 2 rows of 8 x 12 is [[2, 4, 4, 6]]; allowed"),
        (MAPS[0], (4, 6), (2, 4), "output is 'Tensor'; allowed: a list of maps [rows, channels, height, width]"),
    ],
)
def test_maps_that_are_not_what_the_encoder_says(maps: Any, channels: Any, strides: Any, message: str) -> None:
    with pytest.raises(BadValue, match=re.escape(message)):
        build_from_factory(lambda: Given(maps, channels, strides), PICTURES)


def test_a_pyramid_needs_one_image() -> None:
    with pytest.raises(BadValue, match=r"what a pyramid is made of.*allowed: one image"):
        build_from_factory(lambda: Given(MAPS), InputSchema(shapes={"numeric": (4,)}))
    with pytest.raises(BadValue, match="both sides at least 8"):
        build(ModelSpec.model_validate({"encoder": "pyramid"}).encoder, InputSchema(shapes={"image": (3, 4, 9)}))


def test_a_list_without_the_attribute_says_what_is_missing() -> None:
    with pytest.raises(BadValue, match=r"output is 'list'; allowed: a tensor \[rows, width\], or the attribute gives"):
        build_from_factory(Stages, PICTURES)


def test_a_model_of_timms_interface_is_an_encoder() -> None:
    encoder: Any = build_from_factory(lambda: timm_pyramid(Stages()), PICTURES)
    assert encoder.shapes == [(4, 4, 6), (6, 2, 3)]
    model = build_model(ModelSpec(sharing="mtan"), PICTURES, OUTPUTS, seed=0, encoder=lambda: timm_pyramid(Stages()))
    assert model(inputs_of("mtan", 2))["topic"].shape == (2, 8, 12, 4)
    with pytest.raises(BadValue, match="timm_pyramid: model is 'Linear'; allowed: one made with features_only=True"):
        timm_pyramid(nn.Linear(1, 1))


class Layout(StrEnum):
    """As timm's own."""

    LAST = "NHWC"
    SEQUENCE = "NLC"


class LastStages(Stages):
    output_fmt: Any = Layout.LAST

    def forward(self, x: Tensor) -> list[Tensor]:
        return [each.permute(0, 2, 3, 1) for each in super().forward(x)]


def test_a_model_of_timms_interface_may_give_its_channels_last() -> None:
    stages, last = Stages(), LastStages()
    last.load_state_dict(stages.state_dict())
    image = {"image": uniform(0, 2, 3, 8, 12)}
    first, found = (build_from_factory(lambda made=made: timm_pyramid(made), PICTURES) for made in (stages, last))
    assert all(torch.equal(one, other) for one, other in zip(first(image), found(image), strict=True))
    last.output_fmt = Layout.SEQUENCE
    with pytest.raises(BadValue, match=r"what LastStages gives is 'NLC'; allowed: maps: NCHW or NHWC"):
        timm_pyramid(last)


def test_hidden_states_of_hugging_face_models_are_encoders() -> None:
    transformers = pytest.importorskip("transformers")
    common = {"num_channels": 3, "hidden_dropout_prob": 0.0}
    vit = transformers.ViTConfig(
        image_size=(8, 12), patch_size=4, hidden_size=8, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=8, **common,
    )  # fmt: skip
    model = transformers.ViTModel(vit, add_pooling_layer=False).eval()
    encoder: Any = build_from_factory(lambda: hidden_states_pyramid(model, [1, 2], [4, 4]), PICTURES)
    assert encoder.shapes == [(8, 2, 3), (8, 2, 3)]
    image = uniform(0, 2, 3, 8, 12)
    tokens = model(pixel_values=image).last_hidden_state
    norm = model.layernorm
    found = encoder({"image": image})[1]
    torch.testing.assert_close(norm(found[:, :, 1, 2]), tokens[:, 1 + 5])  # after the class token, row by row
    resnet = transformers.ResNetConfig(embedding_size=4, hidden_sizes=[4, 6], depths=[1, 1], layer_type="basic")
    convolutions: Any = build_from_factory(
        lambda: hidden_states_pyramid(transformers.ResNetModel(resnet), [1, 2], [4, 8]), PICTURES
    )
    assert convolutions.shapes == [(4, 2, 3), (6, 1, 2)]
    with pytest.raises(BadValue, match=r"layers is \[7\]; allowed: places among 3 hidden states"):
        hidden_states_pyramid(model, [7], [4])
    with pytest.raises(BadValue, match=r"layers and strides is \[\[1\], \[4, 8\]\]; allowed: as many of each"):
        hidden_states_pyramid(model, [1], [4, 8])
    with pytest.raises(BadValue, match=r"model is 'Linear'; allowed: one with config\.hidden_size or hidden_sizes"):
        hidden_states_pyramid(nn.Linear(1, 1), [1], [4])


def test_the_input_that_is_missing() -> None:
    with pytest.raises(MissingInput, match="reads the input 'image'; found: numeric"):
        timm_pyramid(Stages())({"numeric": torch.zeros(1, 3)})


# ---- decoders


def dense_model(sharing: Any = "hard", **decoder: Any) -> MultiTaskModel:
    spec = {"encoder": {"kind": "pyramid", "channels": [4, 8]}, "sharing": sharing, "decoder": decoder or None}
    return build_model(ModelSpec.model_validate(spec), PICTURES, OUTPUTS, seed=0)


@pytest.mark.parametrize("kind", DENSE)
def test_architectures_on_pyramids_refuse_other_encoders(kind: str) -> None:
    with pytest.raises(BadValue, match=rf"sharing '{kind}': what the encoder gives is 'a vector .*a pyramid of maps"):
        build_model(ModelSpec(encoder="tabular", sharing=kind), TABLE, OUTPUTS, seed=0)


def test_decoders_belong_to_pyramids() -> None:
    for encoder, schema in (("tabular", TABLE), ("segnet", InputSchema(shapes={"image": (3, 32, 32)}))):
        spec = ModelSpec.model_validate({"encoder": encoder, "decoder": DECODER})
        with pytest.raises(
            BadValue, match=r"model.decoder is .*; allowed: nothing, as the encoder gives a (vector|map)"
        ):
            build_model(spec, schema, OUTPUTS, seed=0)
    spec = ModelSpec.model_validate({"encoder": "tabular", "sharing": "mmoe", "decoder": DECODER})
    with pytest.raises(BadValue, match="allowed: nothing, as sharing 'mmoe' reads no pyramid"):
        build_model(spec, TABLE, OUTPUTS, seed=0)


def test_a_task_has_its_own_resolution() -> None:
    model = dense_model(strides={"topic": 3})
    shapes = {task: tuple(output.shape[:3]) for task, output in model(inputs_of("mtan", 2)).items()}
    assert shapes == {"click": (2, 8, 12), "topic": (2, 3, 4), "assays": (2, 8, 12)}
    with pytest.raises(BadValue, match=r"strides of task 'topic' is 9; allowed: at most the image's smaller side, 8"):
        dense_model(strides={"topic": 9})


@pytest.mark.parametrize("kind", [*DENSE, "hard on a pyramid", "task_tokens on a pyramid", "facexformer on a pyramid"])
def test_outputs_come_from_the_packed_pyramid(kind: str) -> None:
    model, inputs = model_of(kind).eval(), inputs_of(kind, 3)
    representation = model.representation(inputs)
    assert representation.shape == (3, model.sharing.representation_width) == (3, 4 * 24 + 8 * 6)
    outputs = model.from_representation(representation, ["assays", "click"])
    for task, output in outputs.items():
        torch.testing.assert_close(output, model(inputs)[task])


@pytest.mark.parametrize("options, message", [
    ({"kind": "m3vit", "heads": 3}, "sharing 'm3vit': heads is 3; allowed: a divisor of the width of a token, 8"),
    ({"kind": "task_tokens", "heads": 3}, "sharing 'task_tokens': heads is 3; allowed: a divisor of the width"),
    ({"kind": "m3vit", "experts": 1}, "gate top_k: k is 2; allowed: at most the number of experts, 1"),
    ({"kind": "task_expert", "gate": {"select": {"kind": "top_k", "k": 9}}}, "at most the number of experts, 5"),
])  # fmt: skip
def test_options_that_do_not_fit(options: dict[str, Any], message: str) -> None:
    with pytest.raises(BadValue, match=re.escape(message)):
        dense_model(options)


def test_attachments_read_vectors() -> None:
    spec = ModelSpec.model_validate({"encoder": {"kind": "pyramid", "channels": [4, 8]}, "sharing": "mtan"})
    rotations = ATTACHMENTS.find("rotograd").Options(dimensions=2)
    with pytest.raises(MissingInput, match="attachment 'rotograd' reads vectors; the encoder gives a pyramid"):
        build_model(spec, PICTURES, OUTPUTS, seed=0, attachments=[rotations])


@pytest.mark.parametrize("kind", [kind for kind in DENSE if kind != "pad"])
def test_a_task_joins_a_trained_model_and_leaves_it(kind: str) -> None:
    old, new = model_of(kind, outputs={"click": 1, "topic": 4}), model_of(kind, seed=1)
    start = initialise(new, old.state_dict(), "old")
    assert start.fresh
    assert all("assays" in name for name in start.fresh)
    inputs = inputs_of(kind, 2)
    torch.testing.assert_close(new.eval()(inputs, ["topic"]), old.eval()(inputs, ["topic"]))
    alone = model_of(kind, seed=2, outputs={"topic": 4})
    assert all("click" in name for name in initialise(alone, old.state_dict(), "old").unused)
    torch.testing.assert_close(alone.eval()(inputs), old(inputs, ["topic"]))


# ---- methods


def test_an_exported_router_computes_what_the_sparse_one_does() -> None:
    """Each token at k experts, or all experts weighed, most of them by 0."""
    routed: Any = model_of("m3vit").sharing.layers[1]
    tokens = uniform(3, 11, 8)
    weights = routed.gates("click", tokens)
    assert (weights > 0).sum(1).tolist() == [2] * 11
    every = sum(weights[:, [number]] * routed.network.experts[str(number + 1)](tokens) for number in range(3))
    torch.testing.assert_close(routed.network(tokens[None], weights, [1, 2, 3])[0], every)


def test_an_expert_that_no_token_chose_has_a_gradient_of_zero() -> None:
    routed: Any = model_of("m3vit").sharing.layers[1]
    tokens, weights = uniform(3, 5, 8), torch.tensor([[0.5, 0.5, 0.0]]).expand(5, 3)
    routed.network(tokens[None], weights, [1, 2, 3]).sum().backward()
    first, _, last = (expert[0].weight.grad for expert in routed.network.experts.values())
    assert last.abs().sum() == 0 < first.abs().sum()


def test_routers_pay_for_uneven_use_in_training_only() -> None:
    model, inputs = model_of("m3vit"), inputs_of("m3vit", 4)
    with listen() as tape:
        model(inputs, ["click"])
    use = torch.stack(list(tape.gates["layer.1", "click"].values())).sum(1)
    expected = 0.01 * use.var(correction=0) / use.mean() ** 2
    torch.testing.assert_close(tape.penalties["click"], expected)
    with listen() as tape:
        model.eval()(inputs, ["click"])
    assert not tape.penalties


def test_tasks_of_pad_read_each_other_and_those_of_medusa_do_not() -> None:
    for kind, reached in (("pad", True), ("medusa", False), ("mtan", False)):
        model = model_of(kind)
        model(inputs_of(kind, 2), ["click"])["click"].sum().backward()
        others = [p for name, p in model.named_parameters() if "decoders.topic" in name and p.grad is not None]
        assert bool(others) == reached, kind


def test_a_memory_is_its_tasks_own_expert() -> None:
    model, inputs = model_of("task_expert"), inputs_of("task_expert", 3)
    with listen() as tape:
        model(inputs, ["click", "topic"])
    assert list(tape.gates) == [(f"level.{level}", task) for level in (1, 0) for task in ("click", "topic")]
    assert list(tape.gates["level.0", "topic"]) == ["shared 1", "shared 2", "topic 1"]
    weights = torch.stack(list(tape.gates["level.0", "topic"].values()))
    torch.testing.assert_close(weights.sum(0), torch.ones(3))
