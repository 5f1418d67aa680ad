"""What task tokens and queries do beyond what every architecture must, and tasks with one label a row on a pyramid."""

import re
from typing import Any

import pytest
import torch
from tests.sharing.models import (
    CASES,
    DECODER,
    OUTPUTS,
    PICTURES,
    SHARING_OPTIONS,
    TEXT,
    TINY_BERT,
    inputs_of,
    model_of,
    on_pictures,
    options_of,
    text_inputs,
    uniform,
)
from torch import Tensor

from polytask.core.errors import BadValue
from polytask.core.inputs import InputSchema
from polytask.core.outputs import OutputSchema
from polytask.sharing import ModelSpec, MultiTaskModel, build_model
from polytask.sharing.tape import listen

PICTURE = inputs_of("oneformer", 3)


def pyramid_model(
    sharing: Any, schema: InputSchema = PICTURES, channels: tuple[int, ...] = (4, 8), **settings: Any
) -> MultiTaskModel:
    decoder, rows = {**DECODER, **settings.pop("decoder", {})}, settings.pop("rows", ())
    spec = {"encoder": {"kind": "pyramid", "channels": channels}, "sharing": sharing, "decoder": decoder}
    outputs = {task: OutputSchema.of(width)._replace(of_rows=task in rows) for task, width in OUTPUTS.items()}
    return build_model(ModelSpec.model_validate(spec), schema, outputs, seed=0, **settings)


# ---- tasks with one label a row beside maps


@pytest.mark.parametrize("case", [case for case in CASES if on_pictures(case) and case != "text_to_text on a pyramid"])
def test_a_task_with_one_label_a_row_reads_a_vector(case: str) -> None:
    decoder = {"strides": {}}
    model = pyramid_model(options_of(case), rows=["click", "assays"], decoder=decoder)
    assert model.sharing.map_sizes == {"topic": (8, 12)}
    shapes = {task: list(output.shape) for task, output in model(PICTURE).items()}
    assert shapes == {"click": [3], "topic": [3, 8, 12, 4], "assays": [3, 3]}
    torch.testing.assert_close(model(PICTURE, ["assays"])["assays"], model(PICTURE)["assays"])


def test_without_a_token_it_is_the_mean_of_the_tasks_map() -> None:
    model = pyramid_model("hard", rows=["click"])
    levels = model.sharing.encoder(PICTURE)
    maps, _ = model.sharing.decoders.decoders["click"](levels)
    expected = maps.flatten(2).mean(2)
    torch.testing.assert_close(model.sharing(PICTURE, ["click"])["click"], expected)


def test_it_has_no_resolution() -> None:
    with pytest.raises(BadValue, match=r"strides of task 'assays' is 2; allowed: none, as it has one label a row"):
        pyramid_model("hard", rows=["assays"])


def test_with_a_token_it_is_the_token() -> None:
    """Of FaceXFormer after its last reading; of OneFormer the last query, normalised as all are."""
    for kind in ("facexformer", "oneformer"):
        model = pyramid_model(SHARING_OPTIONS[kind], rows=["click"]).eval()
        (seen,) = kept(model.sharing.norm, lambda model=model: model(PICTURE, ["click"]))[-1:]
        own = seen[:, 0] if kind == "facexformer" else seen[:, 0, -1]
        torch.testing.assert_close(model.sharing(PICTURE, ["click"])["click"], own)


def kept(module: torch.nn.Module, run: Any) -> list[Tensor]:
    found: list[Tensor] = []
    hook = module.register_forward_hook(lambda module, inputs, output: found.append(output))
    run()
    hook.remove()
    return found


def test_one_of_maps_alone_has_no_part_for_them() -> None:
    model = pyramid_model(SHARING_OPTIONS["facexformer"], rows=list(OUTPUTS), decoder={"strides": {}})
    model(PICTURE)["topic"].sum().backward()
    unused = [name for name, value in model.sharing.named_parameters() if value.grad is None]
    assert unused == []


# ---- FaceXFormer


@pytest.mark.parametrize("case", ["facexformer", "facexformer on a pyramid"])
def test_tasks_read_each_other_directly_and_through_the_image(case: str) -> None:
    model, inputs = model_of(case), inputs_of(case, 2)
    other = model.sharing.tokens["topic"].vector
    first: Any = model.sharing.layers[0]
    (through,) = torch.autograd.grad(model(inputs, ["click"])["click"].sum(), other)
    assert through.abs().sum() > 0
    with torch.no_grad():  # nobody reads the others' tokens in self-attention: the image's tokens still carry them
        for layer in model.sharing.layers:
            layer.outwards.weight.zero_()
    (carried,) = torch.autograd.grad(model(inputs, ["click"])["click"].sum(), other)
    assert carried.abs().sum() > 0
    with torch.no_grad():
        for layer in model.sharing.layers:
            layer.answering.outwards.weight.zero_()
    (nothing,) = torch.autograd.grad(model(inputs, ["click"])["click"].sum(), other, allow_unused=True)
    assert first.outwards.weight.abs().sum() == 0
    assert nothing is None or nothing.abs().sum() == 0


def test_padding_is_read_by_no_token() -> None:
    encoder = {"kind": "transformer", "config": TINY_BERT, "pooling": "none"}
    spec = ModelSpec.model_validate({"encoder": encoder, "sharing": {"kind": "facexformer", "heads": 2}})
    model = build_model(spec, TEXT, {"a": 2, "b": 1}, seed=0).eval()
    inputs = text_inputs([3, 6])
    alone = model({key: tensor[:1, :3] for key, tensor in inputs.items()})
    for task, output in model(inputs).items():
        torch.testing.assert_close(output[:1], alone[task])


def test_a_class_of_a_map_is_the_product_of_its_own_vector_and_a_pixel() -> None:
    """Row k of the head times the token's vector is what the paper's k-th token is made into."""
    model = pyramid_model({"kind": "facexformer", "heads": 2}).eval()
    (pixels,) = kept(model.sharing.enlarging, lambda: model(PICTURE, ["assays"]))
    (vector,) = kept(model.sharing.vectors["assays"], lambda: model(PICTURE, ["assays"]))
    head = model.heads["assays"].output
    tokens = head.weight * vector[:, None]  # [B, classes, d]
    expected = torch.einsum("bkd,bdhw->bhwk", tokens, pixels) + head.bias
    torch.testing.assert_close(model(PICTURE, ["assays"])["assays"], expected)  # half the picture's size, as pixels


# ---- OneFormer


def oneformer(**options: Any) -> MultiTaskModel:
    settings = {key: options.pop(key) for key in ("decoder", "rows", "channels", "schema") if key in options}
    return pyramid_model({**SHARING_OPTIONS["oneformer"], **options}, **settings)


def test_queries_and_texts_of_a_task_are_a_pair_among_those_of_the_row() -> None:
    model = oneformer(contrast=0.3, temperature=0.2).double()
    inputs = {"image": PICTURE["image"].double()}
    (queries,) = kept(model.sharing.first_layers[0], lambda: model(inputs, ["click", "assays"]))
    with listen() as tape:
        model(inputs, ["click", "assays"])
    assert list(tape.penalties) == ["click", "assays"]
    tokens = [model.sharing.tokens[task].vector for task in ("click", "assays")]
    scores = torch.zeros(3, 2, 2, dtype=torch.float64)
    for row in range(3):
        for task in (0, 1):
            for text in (0, 1):
                asked, said = queries[row, task].flatten(), torch.cat([tokens[text]] * 2)
                scores[row, task, text] = asked @ said / (asked.norm() * said.norm() * 0.2)
    for place, task in enumerate(("click", "assays")):
        of_queries = scores[:, place].exp()
        of_texts = scores[:, :, place].exp()
        right = scores[:, place, place].exp()
        expected = -0.3 * ((right / of_queries.sum(1)).log() + (right / of_texts.sum(1)).log()).mean()
        torch.testing.assert_close(tape.penalties[task], expected)


def test_the_contrast_is_of_several_tasks_in_training_only() -> None:
    for model, tasks, expected in (
        (oneformer(), list(OUTPUTS), list(OUTPUTS)),
        (oneformer(), ["click"], []),
        (oneformer().eval(), list(OUTPUTS), []),
        (oneformer(contrast=0), list(OUTPUTS), []),
    ):
        with listen() as tape:
            model(PICTURE, tasks)
        assert list(tape.penalties) == expected


def test_a_query_reads_where_its_mask_is_and_everywhere_where_it_is_empty() -> None:
    level = torch.zeros(1, 8, 1, 2)
    masks = torch.tensor([[[[5.0, -1.0, 1.0, -3.0]], [[-1.0] * 4], [[-1.0, 1.0, 0.0, 0.0]]]])[:, None]
    # halves of four pixels, between centres: (5 - 1)/2 and (1 - 3)/2; all below 0; 0 is a mask of exactly 1/2
    seen = oneformer().sharing._seen(masks, level)
    assert seen.tolist() == [[[True, False], [True, True], [True, True]]]


def test_levels_are_read_from_the_coarsest_on_and_the_only_one_is_read() -> None:
    deep = oneformer(channels=(4, 4, 8), layers=3, schema=InputSchema(shapes={"image": (3, 16, 16)}))
    read = [
        kept(layer.reading.source_norm, lambda: deep({"image": uniform(1, 2, 3, 16, 16)}))
        for layer in deep.sharing.layers
    ]
    assert [one.shape[1] for (one,) in read] == [4, 16, 4]  # 2 x 2, 4 x 4 and again
    flat = oneformer(channels=(4,))
    assert [
        one.shape[1]
        for (one,) in [kept(layer.reading.source_norm, lambda: flat(PICTURE)) for layer in flat.sharing.layers]
    ] == [24, 24]


def test_maps_before_each_layer_help_in_training() -> None:
    model = oneformer(rows=["click"])
    assert model.sharing.auxiliary == {"layer.0": 8, "layer.1": 8}
    with listen() as tape:
        model(PICTURE)
    assert list(tape.features) == [(f"layer.{layer}", task) for layer in (0, 1) for task in OUTPUTS]
    assert tape.features["layer.1", "topic"].shape == (3, 8, 4, 6)
    assert tape.features["layer.1", "click"].shape == (3, 8, 1, 1)
    with listen() as tape:
        oneformer(decoder={"auxiliary": 0})(PICTURE)
        model.eval()(PICTURE)
    assert not tape.features
    assert oneformer(decoder={"auxiliary": 0}).sharing.auxiliary == {}


@pytest.mark.parametrize("options, message", [
    ({"kind": "oneformer", "heads": 3}, "sharing 'oneformer': heads is 3; allowed: a divisor of the width"),
    ({"kind": "facexformer", "heads": 3}, "sharing 'facexformer': heads is 3; allowed: a divisor of the width"),
    ({"kind": "oneformer", "queries": 1}, "queries is 1; allowed: greater than or equal to 2"),
    ({"kind": "oneformer", "temperature": 0}, "temperature is 0; allowed: greater than 0"),
    ({"kind": "oneformer", "querys": 4}, "no key 'querys' (did you mean 'queries'?)"),
])  # fmt: skip
def test_options_that_do_not_fit(options: dict[str, Any], message: str) -> None:
    with pytest.raises(Exception, match=re.escape(message)):
        pyramid_model(options)


@pytest.mark.parametrize("kind", ["facexformer", "oneformer"])
def test_strides_are_checked_as_those_of_decoders(kind: str) -> None:
    with pytest.raises(BadValue, match=r"strides of task 'topic' is 9; allowed: at most the image's smaller side, 8"):
        pyramid_model(SHARING_OPTIONS[kind], decoder={"strides": {"topic": 9}})


def test_decoders_go_with_pyramids_only() -> None:
    spec = {
        "encoder": {"kind": "columns", "width": 8},
        "sharing": {"kind": "facexformer", "heads": 2},
        "decoder": DECODER,
    }
    with pytest.raises(BadValue, match="allowed: nothing, as the encoder gives a sequence and no pyramid"):
        build_model(ModelSpec.model_validate(spec), InputSchema(shapes={"numeric": (3,)}), OUTPUTS, seed=0)
