"""Factories from Python, heads, starts from a checkpoint, bad input."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.sharing.models import IMAGES, OUTPUTS, TABLE, table_inputs, table_model, uniform
from torch import Tensor, nn

from polytask.checkpoints.checkpoint import write_checkpoint
from polytask.core.errors import BadValue, CheckpointError, MissingInput, UnknownName
from polytask.core.inputs import InputSchema
from polytask.sharing import ModelSpec, MultiTaskModel, build_model
from polytask.sharing.initialise import initialise
from polytask.sharing.layers import Head, TaskModules


def from_factory(
    factory: Callable[..., nn.Module], schema: InputSchema = IMAGES, sharing: str = "hard"
) -> MultiTaskModel:
    return build_model(ModelSpec(sharing=sharing), schema, {"a": 2, "b": 1}, seed=0, encoder=factory)


class WithWidth(nn.Module):
    width = 144

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        return inputs["image"].flatten(1)


class OfMapping(nn.Module):
    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        return inputs["numeric"] * inputs["categorical"].sum(1, keepdim=True)


# ---- factories


def test_a_plain_module_gets_the_only_input_and_its_width_is_found() -> None:
    model = from_factory(lambda: nn.Sequential(nn.Flatten(), nn.Linear(144, 7), nn.BatchNorm1d(7)))
    assert model.sharing.width == 7
    assert model.training
    assert model({"image": uniform(0, 3, 1, 12, 12)})["a"].shape == (3, 2)
    assert int(model.sharing.encoder.module[2].num_batches_tracked) == 1  # the dry run counted nothing


def test_a_plain_module_gets_the_mapping_if_there_are_several_inputs() -> None:
    model = from_factory(OfMapping, TABLE)
    assert model.sharing.width == 5
    assert model(table_inputs(3))["b"].shape == (3,)


def test_a_module_with_a_width_gets_the_mapping() -> None:
    assert from_factory(WithWidth).sharing.width == 144


def test_a_factory_may_take_the_schema() -> None:
    model = from_factory(lambda schema: nn.Sequential(nn.Flatten(), nn.Linear(schema.shapes["image"][1] ** 2, 4)))
    assert model.sharing.width == 4


def test_a_lazy_module_is_given_its_shape() -> None:
    assert from_factory(lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(6))).sharing.width == 6


@pytest.mark.usefixtures("untouched_random_state")
def test_a_factory_starts_from_the_seed_and_each_task_alike_in_single() -> None:
    def factory() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(144, 3))

    hard, single = from_factory(factory), from_factory(factory, sharing="single")
    weights = [encoder.module[1].weight for encoder in single.sharing.encoders.values()]
    assert torch.equal(weights[0], weights[1])
    assert weights[0] is not weights[1]
    assert torch.equal(weights[0], hard.sharing.encoder.module[1].weight)


@pytest.mark.parametrize(
    "factory, message",
    [
        (lambda: nn.Linear(12, 3), r"output for 2 rows is '\[2, 1, 12, 3\] torch.float32'; allowed: \[2, width\]"),
        (lambda: nn.Linear(5, 3), r"inputs is {'image': \[2, 1, 12, 12\]}; allowed: what it can take \(it raised Runt"),
        (lambda: nn.LSTM(12, 3), "it raised|output is 'tuple'"),
        (lambda: "resnet", "what the encoder factory returned is 'str'; allowed: a torch.nn.Module"),
    ],
)
def test_a_factory_whose_module_does_not_fit(factory: Callable[..., nn.Module], message: str) -> None:
    with pytest.raises(BadValue, match=message):
        from_factory(factory)


def test_a_width_that_is_not_the_outputs() -> None:
    class Wrong(WithWidth):
        width = 100

    with pytest.raises(BadValue, match=r"output is \[2, 144\]; allowed: \[rows, width\] = \[2, 100\]"):
        from_factory(Wrong)


def test_no_encoder_at_all() -> None:
    with pytest.raises(MissingInput, match=r"the model has no encoder: name one in model\.encoder or pass encoder="):
        build_model(ModelSpec(), IMAGES, {"a": 1}, seed=0)


# ---- heads and tasks


def test_a_head_is_hidden_layers_then_a_linear_one() -> None:
    head = Head(4, 3, (5, 6))
    assert [tuple(parameter.shape) for parameter in head.parameters()] == [(5, 4), (5,), (6, 5), (6,), (3, 6), (3,)]
    assert head(torch.zeros(2, 4)).shape == (2, 3)
    assert Head(4, 1)(torch.zeros(2, 4)).shape == (2,)


def test_a_head_of_the_wrong_width() -> None:
    heads = TaskModules()
    heads["a"] = Head(5, 1)
    with pytest.raises(BadValue, match="width of the head of 'a' is 5; allowed: 8"):
        MultiTaskModel(table_model().sharing, heads)


@pytest.mark.parametrize(
    "outputs, heads, error",
    [({}, {}, BadValue), ({"a": 0}, {}, BadValue), ({"a": 1}, {"b": [3]}, UnknownName)],
)
def test_tasks_that_make_no_model(outputs: dict[str, int], heads: dict[str, list[int]], error: type[Exception]) -> None:
    with pytest.raises(error):
        build_model(ModelSpec(encoder="tabular"), TABLE, outputs, heads, seed=0)


def test_nothing_is_shared_by_single_models() -> None:
    with pytest.raises(MissingInput, match="'single' has no shared representation: click, topic, assays"):
        table_model("single").representation(table_inputs(2))


def test_one_single_model_is_hard_sharing_of_one_task() -> None:
    single, hard = (table_model(sharing, outputs={"click": 1}) for sharing in ("single", "hard"))
    inputs = table_inputs(4)
    assert torch.equal(single(inputs)["click"], hard(inputs)["click"])
    assert torch.equal(single.from_representation(single.representation(inputs))["click"], hard(inputs)["click"])


@pytest.mark.parametrize("task", ["type", "a.b", "items", "100 %", "%74ype", "größe", "NR-AR"])
def test_any_name_can_be_a_tasks(task: str) -> None:
    modules = TaskModules()
    modules[task] = nn.Linear(1, 1)
    assert task in modules
    assert list(modules) == list(modules.keys()) == [task]
    assert modules[task] is next(iter(modules.values()))
    assert list(modules.state_dict()) == [f"{TaskModules.key(task)}.weight", f"{TaskModules.key(task)}.bias"]
    del modules[task]
    assert task not in modules
    assert len(modules) == 0


# ---- starting from a checkpoint


def test_a_start_from_a_checkpoint_directory(tmp_path: Path) -> None:
    trained = table_model("mmoe", seed=3, outputs={"click": 1, "old": 2})
    write_checkpoint(tmp_path / "start", tensors=trained.state_dict(), config={}, inputs={}, card={}, recipe={})
    spec = ModelSpec(
        encoder={"kind": "tabular", "embedding": 3, "hidden_sizes": [11, 8]},
        sharing="mmoe",
        init_from=str(tmp_path / "start"),
    )
    model = build_model(spec, TABLE, {"click": 1, "new": 4}, seed=0)
    inputs = table_inputs(3)
    assert torch.equal(model(inputs, ["click"])["click"], trained(inputs, ["click"])["click"])
    assert model.spec.init_from is None
    heads = {"heads.new.output.weight", "heads.new.output.bias"}
    assert set(model.start.fresh) == {"sharing.gates.gates.new.weight", *heads}
    assert {name.split(".")[-3 if "heads" in name else -2] for name in model.start.unused} == {"old"}


@pytest.mark.parametrize(
    "other, message",
    [
        ({"sharing": "mmoe"}, "lacks 'sharing.experts.weights.0' and"),
        ({"hidden_sizes": [11, 8, 8]}, "lacks 'sharing.encoder.layers.4.weight'"),
        ({"hidden_sizes": [11, 9]}, r"layers.2.weight' is \[8, 11\] there; the model has \[9, 11\]"),
        ({"outputs": {"click": 2}}, r"heads.click.output.weight' is \[1, 8\] there; the model has \[2, 8\]"),
    ],
)
def test_a_checkpoint_of_another_model(other: dict[str, object], message: str) -> None:
    model = table_model(**other)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=message):
        initialise(model, table_model().state_dict(), "there")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


# ---- whose parts a task reads


@pytest.mark.parametrize(
    ("sharing", "apart"),
    [
        ({"kind": "task_tokens", "heads": 2}, True),
        ({"kind": "task_tokens", "heads": 2, "tasks_read_tasks": True}, False),
        ({"kind": "ple", "levels": 1}, True),
        ({"kind": "ple", "levels": 2}, False),
    ],
    ids=str,
)
def test_what_others_read_of_a_task_depends_on_the_options_and_stays(sharing: dict[str, Any], apart: bool) -> None:
    whole, few = table_model(sharing).eval(), {"click": 1, "assays": 3}
    left = whole.read_by(few)
    assert left == (["click", "assays"] if apart else list(OUTPUTS))
    smaller, tensors = table_model(sharing, 1, few, left).eval(), whole.state_dict()
    smaller.load_state_dict({name: tensors[name] for name in smaller.state_dict()})
    inputs = table_inputs(5)
    before, after = whole(inputs, list(few)), smaller(inputs)
    assert list(after) == smaller.tasks == list(few)
    assert all(torch.equal(output, before[task]) for task, output in after.items())
    with pytest.raises(UnknownName, match="no task 'topic'"):
        smaller(inputs, ["topic"])


def test_a_product_reads_what_its_factors_read() -> None:
    outputs, products = {"click": 1, "bought": 1, "buy": 1}, {"bought": ["click", "buy"]}
    model = build_model(
        ModelSpec(encoder="mlp", sharing="aitm"),
        InputSchema(shapes={"numeric": (4,)}),
        outputs,
        seed=0,
        products=products,
    )
    assert model.read_by(["bought"]) == ["click", "buy"]
    assert model.read_by(["click"]) == ["click"]


def test_an_architecture_without_a_task_that_has_a_head() -> None:
    with pytest.raises(UnknownName, match=r"sharing_tasks: no task 'topic'; allowed: click, assays"):
        table_model("cross_stitch", sharing_tasks=["click", "assays"])
