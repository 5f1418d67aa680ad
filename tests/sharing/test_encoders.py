"""The encoders for vectors, images and tables."""

import json
import re
from typing import Any

import pytest
import torch
from tests.sharing.models import IMAGES, TABLE, TEXT, TINY_BERT, table_inputs, table_model, text_inputs, uniform
from torch import nn

from polytask.core.errors import BadValue, MissingInput, PolytaskError, UnknownName
from polytask.core.inputs import InputSchema
from polytask.core.validation import validated
from polytask.sharing import ENCODERS, ModelSpec, build_model
from polytask.sharing.encoders.contract import build, zeros
from polytask.sharing.encoders.tabular import EmbeddingRule, PackedEmbeddings


def encoder(schema: InputSchema, **options: Any) -> nn.Module:
    return build(ModelSpec(encoder=options).encoder, schema)


# ---- mlp


def test_mlp_reads_every_array_in_the_schemas_order() -> None:
    schema = InputSchema(shapes={"numeric": (2,), "bits": (3,), "image": (1, 2, 2)})
    inputs = {"image": uniform(0, 4, 1, 2, 2), "numeric": uniform(1, 4, 2), "bits": uniform(2, 4, 3)}
    mlp = encoder(schema, kind="mlp", hidden_sizes=[])
    assert mlp.width == 9
    torch.testing.assert_close(
        mlp(inputs), torch.cat([inputs["numeric"], inputs["bits"], inputs["image"].flatten(1)], 1)
    )


def test_mlp_reads_only_the_named_keys() -> None:
    schema = InputSchema(shapes={"numeric": (2,), "bits": (3,)}, cardinalities=(4,))
    mlp = encoder(schema, kind="mlp", keys=["bits"], hidden_sizes=[5])
    bits = uniform(0, 4, 3)
    expected = (bits @ mlp.layers[0].weight.T + mlp.layers[0].bias).relu()
    torch.testing.assert_close(mlp({"bits": bits, "numeric": uniform(1, 4, 2)}), expected)


@pytest.mark.parametrize("normalization", ["none", "batch", "layer"])
def test_hidden_layers_are_linear_normalised_activated_dropped(normalization: str) -> None:
    schema = InputSchema(shapes={"numeric": (3,)})
    mlp = encoder(schema, kind="mlp", hidden_sizes=[4, 4], normalization=normalization, dropout=0.5, activation="silu")
    kinds = [type(layer).__name__ for layer in mlp.layers]
    middle = {"none": [], "batch": ["BatchNorm1d"], "layer": ["LayerNorm"]}[normalization]
    assert kinds == ["Linear", *middle, "SiLU", "Dropout"] * 2


# ---- conv


def test_conv_equals_its_layers() -> None:
    conv = encoder(IMAGES, kind="conv", channels=[4, 8], width=6).double()
    image = uniform(0, 3, 1, 12, 12).double()
    x = image
    for layer in (0, 4):
        weight, bias = conv.convolutions[layer].weight, conv.convolutions[layer].bias
        patches = nn.functional.unfold(x, 3, padding=1)  # [B, channels x 9, positions]
        x = (weight.flatten(1) @ patches + bias[:, None]).unflatten(-1, x.shape[2:])
        groups = x.unflatten(1, (4, -1))
        mean, variance = groups.mean((2, 3, 4), keepdim=True), groups.var((2, 3, 4), correction=0, keepdim=True)
        x = ((groups - mean) / (variance + 1e-5).sqrt()).flatten(1, 2).relu()
        x = x.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).amax((3, 5))
    expected = (x.flatten(1) @ conv.layers[0].weight.T + conv.layers[0].bias).relu()
    torch.testing.assert_close(conv({"image": image}), expected)


def test_a_rows_features_depend_on_no_other_row_by_default() -> None:
    conv, image = encoder(IMAGES, kind="conv"), uniform(0, 4, 1, 12, 12)
    torch.testing.assert_close(conv({"image": image[:1]}), conv({"image": image})[:1])


def test_conv_normalises_by_batch_on_request() -> None:
    conv = encoder(IMAGES, kind="conv", normalization="batch")
    assert [type(layer).__name__ for layer in conv.convolutions].count("BatchNorm2d") == 2


@pytest.mark.parametrize(
    "options, message",
    [
        ({"channels": [6]}, "groups is 4; allowed: a divisor of each of channels"),
        ({"channels": [4] * 4}, "below one pixel"),
        ({"key": "picture"}, "reads 'picture'; the source gives: image"),
    ],
)
def test_conv_that_does_not_fit(options: dict[str, Any], message: str) -> None:
    with pytest.raises((BadValue, MissingInput), match=message):
        encoder(IMAGES, kind="conv", **options)


def test_conv_of_a_vector() -> None:
    with pytest.raises(BadValue, match=r"\[7\]; allowed: \[channels, height, width\]"):
        encoder(InputSchema(shapes={"image": (7,)}), kind="conv")


# ---- tabular


def test_packed_embeddings_equal_a_table_for_each_column() -> None:
    cardinalities, widths = (4, 7, 3, 5), [2, 3, 2, 3]
    packed = PackedEmbeddings(cardinalities, widths, deviation=1.0)
    indices = torch.tensor([[0, 6, 2, 4], [3, 0, 1, 0]])
    narrow, wide = packed.tables["2"].weight, packed.tables["3"].weight
    columns = [narrow[:4], narrow[4:], wide[:7], wide[7:]]  # ordered by width, then as given
    expected = torch.cat([column[indices[:, i]] for column, i in zip(columns, (0, 2, 1, 3), strict=True)], dim=1)
    assert torch.equal(packed(indices), expected)
    assert packed.width == 10


@pytest.mark.parametrize("value, column, most", [(4, 0, 3), (-1, 2, 2)])
def test_an_index_beyond_its_column_is_not_read_from_the_next(value: int, column: int, most: int) -> None:
    inputs = table_inputs(3)
    inputs["categorical"][1, column] = value
    with pytest.raises(BadValue, match=f"row 1, column {column} is {value}; allowed: 0 to {most}"):
        encoder(TABLE, kind="tabular")(inputs)


def test_the_rule_for_embedding_widths() -> None:
    rule = EmbeddingRule()
    assert [rule.width(n) for n in (2, 10, 50, 1000)] == [3, 6, 15, 32]  # 1.6 n^0.56: 2.36, 5.81, 14.31, 76.6
    assert EmbeddingRule(factor=1, power=0.5, most=4).width(9) == 3


def test_tabular_embeds_with_one_width_or_the_rule() -> None:
    assert list(encoder(TABLE, kind="tabular", embedding=5).embeddings.tables) == ["5"]
    by_rule = encoder(TABLE, kind="tabular", embedding={"most": 4}, hidden_sizes=[])
    assert by_rule.width == 5 + 4 + 4 + 3  # n = 4, 7, 3: 3.48, 4.76 (at most 4), 2.96


def test_tabular_without_categorical_columns_and_without_numeric_ones() -> None:
    numeric = encoder(InputSchema(shapes={"numeric": (5,), "bits": (3,)}), kind="tabular", hidden_sizes=[])
    assert numeric.width == 8
    categorical = encoder(InputSchema(cardinalities=(4, 7, 3)), kind="tabular", embedding=2, hidden_sizes=[])
    assert categorical({"categorical": table_inputs(6)["categorical"]}).shape == (6, 6)


def test_dropout_acts_in_training_only() -> None:
    tabular, inputs = encoder(TABLE, kind="tabular", dropout=0.5, input_dropout=0.2), table_inputs(4)
    with torch.random.fork_rng():
        assert not torch.equal(tabular(inputs), tabular(inputs))
    tabular.eval()
    assert torch.equal(tabular(inputs), tabular(inputs))


# ---- what does not fit


@pytest.mark.parametrize(
    "kind, schema, message",
    [
        ("mlp", TABLE, "would ignore categorical"),
        ("conv", TABLE, "reads 'image'; the source gives: numeric, categorical"),
        ("tabular", IMAGES, "reads 'categorical'; the source gives: image"),
        ("tabular", InputSchema(shapes={"numeric": (2,), "image": (1, 4, 4)}), "would ignore image"),
        ("tabular", TEXT, "reads 'categorical'; the source gives: text"),
        ("transformer", TABLE, "reads 'text'; the source gives: numeric, categorical"),
    ],
)
def test_an_encoder_that_does_not_read_what_the_source_gives(kind: str, schema: InputSchema, message: str) -> None:
    options = {"kind": kind, **({"config": {"model_type": "bert"}} if kind == "transformer" else {})}
    with pytest.raises((BadValue, MissingInput), match=message):
        encoder(schema, **options)


def test_inputs_that_do_not_fit_the_schema() -> None:
    tabular, inputs = encoder(TABLE, kind="tabular"), table_inputs(3)
    with pytest.raises(BadValue, match=r"input 'numeric' is \[3, 4\]; allowed: \[rows, 5\]"):
        tabular({**inputs, "numeric": inputs["numeric"][:, :4]})
    with pytest.raises(MissingInput, match="reads the input 'categorical'; found: numeric"):
        tabular({"numeric": inputs["numeric"]})


@pytest.mark.parametrize(
    "bad, message",
    [
        ({"kind": "mlp", "hiden_sizes": [3]}, "model.encoder: no key 'hiden_sizes' (did you mean 'hidden_sizes'?)"),
        ({"kind": "tabular", "dropout": 1.0}, "model.encoder.dropout is 1.0; allowed: less than 1"),
        ({"kind": "tabular", "embedding": {"mst": 3}}, "model.encoder.embedding: no key 'mst' (did you mean 'most'?)"),
        (
            {"sizes": [3]},
            "model.encoder is {'sizes': [3]}; allowed: a kind (mlp, conv, segnet, pyramid, tabular, columns,",
        ),
        ({"kind": "transformer", "pretrained": "x", "trainable": "most"}, "model.encoder.trainable is 'most'; allowed"),
        (3, "model.encoder is 3; allowed: a kind"),
    ],
)
def test_options_are_strict(bad: object, message: str) -> None:
    with pytest.raises(PolytaskError, match=re.escape(message)):
        validated(ModelSpec, {"encoder": bad}, "recipe: model")


def test_an_editors_schema_has_every_kind_and_its_options() -> None:
    schema = ModelSpec.model_json_schema()
    names, *options, nothing = schema["properties"]["encoder"]["anyOf"]
    assert names == {"enum": ENCODERS.names()}
    assert [each["properties"]["kind"]["const"] for each in options] == ENCODERS.names()
    assert nothing == {"type": "null"}
    assert "experts" in json.dumps(schema["properties"]["sharing"])


def test_an_unknown_kind_names_the_nearest() -> None:
    with pytest.raises(UnknownName, match=r"no encoder 'tabluar' \(did you mean 'tabular'\?\)"):
        ModelSpec.model_validate({"encoder": "tabluar"})
    with pytest.raises(UnknownName, match="no sharing architecture 'moe'"):
        ModelSpec.model_validate({"encoder": "mlp", "sharing": {"kind": "moe"}})


def test_zeros_have_the_schemas_shapes() -> None:
    inputs = zeros(InputSchema(shapes={"bits": (3,)}, cardinalities=(2, 2), text=True), rows=4)
    shapes = {key: list(tensor.shape) for key, tensor in inputs.items()}
    assert shapes == {"bits": [4, 3], "categorical": [4, 2], "input_ids": [4, 3], "attention_mask": [4, 3]}


# ---- segnet


def test_segnet_gives_a_feature_vector_a_pixel_and_unpools_to_where_the_maximum_was() -> None:
    schema = InputSchema(shapes={"image": (1, 4, 4)})
    segnet = encoder(schema, kind="segnet", channels=[1], convolutions=[1])
    for block in (segnet.down[0], segnet.up[0]):  # convolutions that change nothing
        nn.init.dirac_(block[0].weight)
    image = torch.zeros(1, 1, 4, 4)
    image[0, 0, 1, 2] = 3.0
    segnet.eval()
    found = segnet({"image": image})
    assert found.shape == (1, 4, 4, 1)
    torch.testing.assert_close(found[0, :, :, 0], image[0, 0], rtol=1e-4, atol=1e-4)


def test_segnet_needs_sides_that_can_be_halved() -> None:
    with pytest.raises(BadValue, match="both sides multiples of 4"):
        encoder(InputSchema(shapes={"image": (3, 6, 8)}), kind="segnet", channels=[2, 2], convolutions=[1, 1])
    with pytest.raises(BadValue, match="as many of each"):
        encoder(InputSchema(shapes={"image": (3, 8, 8)}), kind="segnet", channels=[2], convolutions=[1, 1])


# ---- sequences


def test_an_architecture_says_what_it_reads() -> None:
    with pytest.raises(BadValue, match=r"'task_tokens': what the encoder gives is .*a vector .*columns \| patches"):
        build_model(ModelSpec(encoder="tabular", sharing="task_tokens"), TABLE, {"a": 1}, seed=0)
    with pytest.raises(BadValue, match=r"sharing 'hard': what the encoder gives is .*a sequence"):
        build_model(ModelSpec(encoder="columns"), TABLE, {"a": 1}, seed=0)


def test_padding_is_read_by_no_task() -> None:
    encoder = {"kind": "transformer", "config": TINY_BERT, "pooling": "none"}
    spec = ModelSpec.model_validate({"encoder": encoder, "sharing": {"kind": "task_tokens", "heads": 2}})
    model = build_model(spec, TEXT, {"a": 2, "b": 1}, seed=0).eval()
    inputs = text_inputs([3, 6])
    both = model(inputs)
    alone = model({key: tensor[:1, :3] for key, tensor in inputs.items()})
    torch.testing.assert_close(both["a"][:1], alone["a"])
    with pytest.raises(MissingInput, match="rows of different length share no representation"):
        model.representation(inputs)


def test_who_may_read_whom() -> None:
    for features_read, tasks_read in ((False, False), (True, False), (False, True), (True, True)):
        options = {"kind": "task_tokens", "heads": 2}
        options |= {"features_read_tasks": features_read, "tasks_read_tasks": tasks_read}
        model = table_model(options).double()
        inputs = table_inputs(3)
        inputs["numeric"] = inputs["numeric"].double()
        token = model.sharing.tokens["topic"].vector
        (through,) = torch.autograd.grad(model(inputs, ["click"])["click"].sum(), token, allow_unused=True)
        reached = through is not None and bool(through.abs().sum() > 0)
        assert reached == (features_read or tasks_read)


def test_heads_that_do_not_divide_a_token() -> None:
    with pytest.raises(BadValue, match="heads is 3; allowed: a divisor of the width of a token, 8"):
        table_model({"kind": "task_tokens", "heads": 3})


def test_missing_columns_are_hidden_where_they_are_marked() -> None:
    """Numbers: a value with a marker, one without, and two that have one marker; two categories."""
    schema = InputSchema(shapes={"numeric": (6,)}, cardinalities=(4, 5), markers=(1, 1, -1, 5, 5, 5))
    options = ENCODERS.find("columns").Options
    shown, hidden = (build(options(width=3, missing=missing), schema) for missing in ("shown", "hidden"))
    assert (shown.tokens, hidden.tokens) == (8, 6)
    numeric = torch.tensor([[0.5, 0.0, -1.0, 0.2, 0.3, 0.0], [0.0, 1.0, 2.0, 0.0, 0.0, 1.0]])
    inputs = {"numeric": numeric, "categorical": torch.tensor([[1, 2], [0, 1]])}
    assert shown(inputs).mask is None
    values, mask = hidden(inputs)
    assert mask.tolist() == [[True, True, True, True, False, True], [False, True, False, False, True, False]]
    expected = numeric[:, [0, 2, 3, 4]].unsqueeze(2) * hidden.weight + hidden.bias[:4]
    torch.testing.assert_close(values[:, :4], expected)
    assert build(options(missing="hidden"), InputSchema(shapes={"numeric": (2,)})).tokens == 2
