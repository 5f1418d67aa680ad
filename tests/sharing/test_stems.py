"""Stems: sources or tasks that read different inputs before one trunk."""

import pytest
import torch
from tests.sharing.models import IMAGES, TABLE, TEXT, TINY_BERT, table_inputs, text_inputs, uniform
from torch import Tensor

from polytask.core.errors import BadValue, Inconsistent, MissingInput, PolytaskError, UnknownName
from polytask.core.inputs import InputSchema
from polytask.sharing import ENCODERS, ModelSpec, MultiTaskModel, build_model, describe
from polytask.sharing.encoders.contract import build
from polytask.sharing.encoders.patches import patches_of

SOURCES = {"click": "table", "buy": "table", "digit": "images"}
SCHEMAS = {"table": TABLE, "images": IMAGES}
STEMS = {"width": 6, "of": {"table": {"kind": "tabular", "hidden_sizes": [5]}, "images": {"kind": "conv", "width": 6}}}


def model(seed: int = 0, sharing: str = "hard", **stems: object) -> MultiTaskModel:
    spec = ModelSpec.model_validate(
        {"stems": {**STEMS, **stems}, "encoder": {"kind": "mlp", "hidden_sizes": [7]}, "sharing": sharing}
    )
    return build_model(spec, SCHEMAS, {"click": 1, "buy": 1, "digit": 10}, seed=seed, sources=SOURCES)


def images(rows: int) -> dict[str, Tensor]:
    return {"image": uniform(1, rows, 1, 12, 12)}


def test_sources_with_different_inputs_share_a_trunk() -> None:
    built = model()
    assert {task: list(output.shape) for task, output in built(table_inputs(4), ["buy", "click"]).items()} == {
        "buy": [4],
        "click": [4],
    }
    assert list(built(images(3), ["digit"])["digit"].shape) == [3, 10]
    reached = {}
    for task, inputs in (("click", table_inputs(4)), ("digit", images(3))):
        built.zero_grad()
        built(inputs, [task])[task].sum().backward()
        reached[task] = {name for name, parameter in built.named_parameters() if parameter.grad is not None}
    both = reached["click"] & reached["digit"]
    assert both == {name for name, _ in built.named_parameters() if name.startswith("sharing.encoder.")}
    assert "stems.stems.table.projection.weight" in reached["click"]  # 5 to 6
    assert not [name for name in reached["digit"] if "projection" in name]


def test_what_a_stem_gives_is_what_the_trunk_reads() -> None:
    built, inputs = model(), table_inputs(4)
    stem = built.stems.stems["table"]
    z = torch.relu(built.sharing.encoder.layers[0](stem.projection(stem.encoder(inputs))))
    torch.testing.assert_close(built(inputs, ["click"])["click"], built.heads["click"].output(z)[:, 0])
    torch.testing.assert_close(built.representation(inputs, ["click", "buy"]), z)


def test_a_stem_may_read_for_tasks_that_never_had_it() -> None:
    """As a sensor and a task that were never trained together (T3)."""
    built = model()
    output = built(images(3), ["buy"], stem="images")["buy"]
    z = built.representation(images(3), ["digit"])
    torch.testing.assert_close(output, built.heads["buy"](z))
    with pytest.raises(UnknownName, match=r"no stem 'image' \(did you mean 'images'"):
        built(images(3), ["buy"], stem="image")


def test_a_stem_for_each_task() -> None:
    spec = {"stems": {"by": "task", "default": {"kind": "tabular", "hidden_sizes": [5]}, "width": 5}}
    built = build_model(ModelSpec.model_validate(spec), TABLE, {"click": 1, "buy": 1}, seed=0)
    inputs = table_inputs(4)
    whole = built(inputs)
    torch.testing.assert_close(built(inputs, ["buy"])["buy"], whole["buy"])
    stems = sum(parameter.numel() for parameter in built.stems.parameters())
    assert describe(built)["private"] == {"click": stems // 2 + 6, "buy": stems // 2 + 6}  # the trunk is the identity
    assert describe(built)["shared"] == 0
    with pytest.raises(MissingInput, match="click, buy have a stem each"):
        built.representation(inputs)


@pytest.mark.parametrize("sharing", ["mmoe", "cgc", "ple", "adatt", "cross_stitch"])
def test_architectures_above_stems(sharing: str) -> None:
    built = model(sharing=sharing)
    sum(output.sum() for output in built(table_inputs(4), ["buy", "click"]).values()).backward()
    assert built(images(3), ["digit"])["digit"].shape == (3, 10)


def test_a_model_with_stems_is_built_again_from_its_specification() -> None:
    built = model()
    spec = ModelSpec.model_validate(built.spec.model_dump(mode="json"))
    again = build_model(spec, SCHEMAS, {"click": 1, "buy": 1, "digit": 10}, seed=0, sources=SOURCES)
    tensors = again.state_dict()
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in built.state_dict().items())


def test_what_is_missing_is_said() -> None:
    with pytest.raises(MissingInput, match="source 'images' has no stem: name one in `of` or give a `default`"):
        model(of={"table": "tabular"})
    with pytest.raises(Inconsistent, match=r"'table' and 'images' have different inputs .* give each a stem"):
        build_model(ModelSpec(encoder="tabular"), SCHEMAS, {"click": 1, "digit": 2}, seed=0, sources=SOURCES)


# ---- tokens


SEQUENCES = {"table": {"kind": "columns", "width": 8}, "images": {"kind": "patches", "patch": 6, "width": 12}}
TRUNK = {"kind": "blocks", "layers": 1, "heads": 2}


def sequence_model(sharing: object = "hard", encoder: object = None, **stems: object) -> MultiTaskModel:
    values = {"stems": {"width": 8, "of": SEQUENCES, **stems}, "encoder": encoder, "sharing": sharing}
    spec = ModelSpec.model_validate(values)
    return build_model(spec, SCHEMAS, {"click": 1, "buy": 1, "digit": 10}, seed=0, sources=SOURCES)


def test_a_trunk_reads_the_tokens_that_stems_give() -> None:
    built, inputs = sequence_model(encoder=TRUNK).double(), {"image": images(3)["image"].double()}
    stem, trunk = built.stems.stems["images"], built.sharing.encoder
    tokens = stem.encoder(inputs).values
    assert list(tokens.shape) == [3, 4, 12]  # 12 x 12 pixels in squares of 6
    read = trunk.norm(trunk.blocks[0](stem.projection(tokens), None)).mean(1)
    torch.testing.assert_close(built.representation(inputs, ["digit"]), read, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(built(inputs, ["buy"], "images")["buy"], built.heads["buy"](read))
    assert built(table_inputs(4) | {"numeric": table_inputs(4)["numeric"].double()}, ["click"])["click"].shape == (4,)


@pytest.mark.parametrize("sharing", [{"kind": "task_tokens", "heads": 2}, {"kind": "prefix", "heads": 2}, "m2trec"])
def test_architectures_over_sequences_read_stems_without_a_trunk(sharing: object) -> None:
    built = sequence_model(sharing)
    assert built(images(3), ["digit"])["digit"].shape == (3, 10)
    sum(output.sum() for output in built(table_inputs(4), ["buy", "click"]).values()).backward()
    reached = {name.split(".")[0] for name, parameter in built.named_parameters() if parameter.grad is not None}
    assert reached == {"stems", "sharing", "heads"}


def test_a_vector_among_tokens_is_one_token() -> None:
    built = sequence_model(encoder=TRUNK, of={**SEQUENCES, "table": {"kind": "tabular", "hidden_sizes": [8]}})
    inputs = table_inputs(4)
    vector = built.stems.stems["table"](inputs)
    trunk = built.sharing.encoder
    expected = trunk.norm(trunk.blocks[0](vector.unsqueeze(1), None))[:, 0]
    torch.testing.assert_close(built.representation(inputs, ["click"]), expected)


def test_padding_of_a_stem_is_read_by_nobody() -> None:
    texts = {"a": TEXT, "b": TEXT}
    stem = {"kind": "transformer", "config": TINY_BERT, "pooling": "none"}
    spec = ModelSpec.model_validate({"stems": {"width": 8, "default": stem}, "encoder": TRUNK})
    built = build_model(spec, texts, {"click": 1, "buy": 1}, seed=0, sources={"click": "a", "buy": "b"}).eval()
    together = text_inputs([3, 6])
    alone = {name: values[:1, :3] for name, values in together.items()}
    torch.testing.assert_close(built(together, ["click"])["click"][:1], built(alone, ["click"])["click"])


def test_what_no_trunk_can_read() -> None:
    numbers = InputSchema(shapes={"numeric": (5,)})
    with pytest.raises(MissingInput, match="encoder 'blocks' reads 'tokens'; the source gives: numeric"):
        build_model(ModelSpec.model_validate({"encoder": "blocks"}), numbers, {"click": 1}, seed=0)
    with pytest.raises(BadValue, match=r"sharing 'hard': what the encoder gives is .*a sequence"):
        sequence_model()
    with pytest.raises(PolytaskError, match=r"encoder 'mlp'.*tokens"):
        sequence_model(encoder="mlp")
    with pytest.raises(BadValue, match="encoder 'blocks': heads is 3; allowed: a divisor of the width of a token, 8"):
        sequence_model(encoder={**TRUNK, "heads": 3})
    with pytest.raises(BadValue, match=r"encoder 'patches': a row of 'image' is \[1, 12, 12\]; allowed: .*of patch, 5"):
        sequence_model(of={**SEQUENCES, "images": {"kind": "patches", "patch": 5}})


def test_patches_are_squares_of_pixels_row_after_row() -> None:
    image = torch.arange(2 * 4 * 6.0).reshape(1, 2, 4, 6)
    found = patches_of(image, 2)
    assert list(found.shape) == [1, 6, 8]
    assert found[0, 0].tolist() == [0, 1, 6, 7, 24, 25, 30, 31]
    assert found[0, 4].tolist() == [14, 15, 20, 21, 38, 39, 44, 45]


def test_layers_above_patches() -> None:
    options = {"kind": "patches", "patch": 6, "width": 8, "layers": 1, "heads": 2}
    encoder = build(ENCODERS.find("patches").Options(**options), IMAGES)
    inputs = images(3)
    expected = encoder.linear(patches_of(inputs["image"], 6)) + encoder.places
    torch.testing.assert_close(encoder(inputs).values, encoder.blocks[0](expected, None))
    assert encoder.tokens == 4


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_stems_of_tokens_are_exported_with_a_dynamic_batch() -> None:
    built = sequence_model(encoder=TRUNK).eval()
    batch = torch.export.Dim("batch", min=1, max=4096)
    shapes = {"inputs": {"image": {0: batch}}, "tasks": [None], "stem": None}
    program = torch.export.export(built, (images(4), ["digit"], "images"), dynamic_shapes=shapes)
    for rows in (1, 7):
        expected = built(images(rows), ["digit"])["digit"]
        torch.testing.assert_close(program.module()(images(rows), ["digit"], "images")["digit"], expected)
