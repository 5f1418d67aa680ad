"""Stems: sources or tasks that read different inputs before one trunk."""

import pytest
import torch
from tests.sharing.models import IMAGES, TABLE, table_inputs, uniform
from torch import Tensor

from polytask.core.errors import Inconsistent, MissingInput, UnknownName
from polytask.sharing import ModelSpec, MultiTaskModel, build_model, describe

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
