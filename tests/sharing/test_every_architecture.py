"""What every sharing architecture must do; a new one is found by its name and needs a reference and options here."""

import copy

import pytest
import torch
from tests.sharing.conditioning_references import CONDITIONING_REFERENCES
from tests.sharing.dense_references import DENSE_REFERENCES
from tests.sharing.graph_references import GRAPH_REFERENCES
from tests.sharing.models import CASES, OUTPUTS, SHARING_OPTIONS, heads_of, inputs_of, model_of, on_pictures, schema_of
from tests.sharing.recommender_references import RECOMMENDER_REFERENCES
from tests.sharing.references import REFERENCES, head_reference
from tests.sharing.squad_references import SQUAD_REFERENCES
from tests.sharing.text_references import TEXT_REFERENCES
from tests.sharing.token_references import TOKEN_REFERENCES
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from polytask.core.errors import UnknownName
from polytask.sharing import SHARING, ModelSpec, MultiTaskModel, build_model, describe

every_architecture = pytest.mark.parametrize("kind", CASES)
references = {
    **REFERENCES,
    **CONDITIONING_REFERENCES,
    **DENSE_REFERENCES,
    **GRAPH_REFERENCES,
    **RECOMMENDER_REFERENCES,
    **SQUAD_REFERENCES,
    **TEXT_REFERENCES,
    **TOKEN_REFERENCES,
}


def test_every_architecture_has_options_and_a_reference() -> None:
    assert set(SHARING.names()) == set(SHARING_OPTIONS)
    assert set(CASES) == set(references)


@every_architecture
def test_equals_the_reference_in_float64(kind: str) -> None:
    model, inputs = model_of(kind).double().eval(), inputs_of(kind, 9)
    inputs = {key: values.double() if values.is_floating_point() else values for key, values in inputs.items()}
    tensors = model.state_dict()
    outputs = model(inputs)
    assert list(outputs) == list(OUTPUTS)
    for task in OUTPUTS:
        expected = head_reference(tensors, task, references[kind](tensors, inputs, task))
        torch.testing.assert_close(outputs[task], expected, rtol=1e-12, atol=1e-12)


# ---- running a subset of the tasks


@every_architecture
@pytest.mark.parametrize("task", OUTPUTS)
def test_a_task_alone_costs_what_a_model_of_that_task_alone_costs(kind: str, task: str) -> None:
    inputs, model = inputs_of(kind, 6), model_of(kind)
    if model.sharing.isolated:
        alone = model_of(kind, outputs={task: OUTPUTS[task]})
        assert flops(model, inputs, [task]) == flops(alone, inputs, None)
    assert flops(model_of(kind), inputs, [task]) < flops(model_of(kind), inputs, None)


def flops(model: MultiTaskModel, inputs: dict[str, Tensor], tasks: list[str] | None) -> int:
    with FlopCounterMode(display=False) as counter:
        model.eval()(inputs, tasks)
    return counter.get_total_flops()


@every_architecture
def test_no_module_of_a_task_that_is_not_named_is_called(kind: str) -> None:
    model, called = model_of(kind), []
    for name, module in model.named_modules():
        module.register_forward_hook(lambda *_, name=name: called.append(name))
    model(inputs_of(kind, 4), ["assays"])
    others = [name for name in called if {"click", "topic"} & set(name.split("."))]
    assert called
    assert not [name for name in others if model.sharing.isolated or name.startswith("heads.")]


@every_architecture
def test_a_subset_gives_what_the_whole_gives_and_no_gradient_elsewhere(kind: str) -> None:
    model, inputs = model_of(kind).eval(), inputs_of(kind, 6)
    whole = model(inputs)
    part = model(inputs, ["topic", "topic"])
    assert list(part) == ["topic"]
    torch.testing.assert_close(part["topic"], whole["topic"])
    part["topic"].sum().backward()
    with_gradient = {name for name, parameter in model.heads.named_parameters() if parameter.grad is not None}
    assert with_gradient == {name for name, _ in model.heads.named_parameters() if name.startswith("topic.")}
    assert model(inputs, []) == {}


@every_architecture
def test_a_task_that_the_model_lacks(kind: str) -> None:
    with pytest.raises(UnknownName, match=r"no task 'clik' \(did you mean 'click'"):
        model_of(kind)(inputs_of(kind, 2), ["clik"])


# ---- shapes, precision, saving, exporting


@every_architecture
def test_batch_of_one_equals_the_row_in_a_larger_batch(kind: str) -> None:
    model, inputs = model_of(kind).eval(), inputs_of(kind, 3)
    whole = model(inputs)
    alone = model({key: tensor[1:2] for key, tensor in inputs.items()})
    image, half = ([8, 12], [4, 6]) if on_pictures(kind) else ([], [])
    assert {task: list(output.shape) for task, output in alone.items()} == {
        "click": [1, *image],
        "topic": [1, *image, 4],
        "assays": [1, *half, 3],
    }
    for task, output in alone.items():
        torch.testing.assert_close(output, whole[task][1:2])


@every_architecture
def test_bf16_autocast_trains(kind: str) -> None:
    model, inputs = model_of(kind), inputs_of(kind, 8)
    with torch.random.fork_rng():  # what a model draws while it trains, it draws alike in both passes
        torch.manual_seed(0)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            outputs = model(inputs)
        torch.manual_seed(0)
        exact = model(inputs)
    sum(output.float().sum() for output in outputs.values()).backward()
    for task, output in outputs.items():
        differs = ~torch.isclose(output.float(), exact[task], rtol=0.05, atol=0.05)
        # a router sends a token that is near a tie to another expert
        assert differs.float().mean() <= (0.02 if kind.startswith(("m3vit", "mod_squad")) else 0)
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())


@every_architecture
def test_a_state_dict_moves_a_model(kind: str) -> None:
    model, other, inputs = model_of(kind), model_of(kind, seed=1), inputs_of(kind, 5)
    assert not torch.equal(model.eval()(inputs)["click"], other.eval()(inputs)["click"])
    other.load_state_dict(model.state_dict())
    assert all(torch.equal(model(inputs)[task], other(inputs)[task]) for task in OUTPUTS)


@every_architecture
def test_a_model_is_built_again_from_its_specification(kind: str) -> None:
    model = model_of(kind)
    again = build_model(
        ModelSpec.model_validate(model.spec.model_dump(mode="json")),
        schema_of(kind),
        OUTPUTS,
        heads_of(model.spec.sharing.kind),
        seed=0,
    )
    assert again.spec == model.spec
    assert same_tensors(model, again)


@every_architecture
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_export_with_a_dynamic_batch(kind: str) -> None:
    model = model_of(kind, outputs={"type": 1, "a.b": 4, "topic": 2}).eval()
    batch = torch.export.Dim("batch", min=1, max=4096)
    shapes = {"inputs": {key: {0: batch} for key in inputs_of(kind, 2)}, "tasks": None}
    program = torch.export.export(model, (inputs_of(kind, 4), None), dynamic_shapes=shapes)
    for rows in (1, 2, 17):
        for task, output in program.module()(inputs_of(kind, rows), None).items():
            torch.testing.assert_close(output, model(inputs_of(kind, rows))[task])


@every_architecture
def test_a_copy_is_independent(kind: str) -> None:
    model = model_of(kind)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(1)
    assert same_tensors(model, model_of(kind))


# ---- the start


@every_architecture
@pytest.mark.usefixtures("untouched_random_state")
def test_the_start_depends_on_the_seed_alone(kind: str) -> None:
    model = model_of(kind)
    with torch.random.fork_rng():
        torch.rand(3)  # the position in the global stream must not matter
        assert same_tensors(model, model_of(kind))
    assert not same_tensors(model, model_of(kind, seed=1))


@every_architecture
def test_the_start_of_a_part_does_not_depend_on_other_tasks(kind: str) -> None:
    if not model_of(kind).sharing.isolated:
        return  # its gates choose among the experts of all tasks, so their shape says how many tasks there are
    few = model_of(kind, outputs={"topic": 4}).state_dict()
    larger = model_of(kind, outputs={"click": 2, "topic": 4, "assays": 1})
    many = larger.state_dict()
    assert set(few) <= set(many)
    assert (set(few) < set(many)) == any(describe(larger)["private"].values())
    assert all(torch.equal(tensor, many[name]) for name, tensor in few.items())


def same_tensors(one: nn.Module, other: nn.Module) -> bool:
    tensors = other.state_dict()
    return all(torch.equal(tensor, tensors[name]) for name, tensor in one.state_dict().items())


# ---- tasks that come and go

READ_EACH_OTHER = {
    *("ple", "adatt", "stem", "cross_stitch", "nddr", "sluice", "pad"),
    *("facexformer", "facexformer on a pyramid"),
}
"""All tasks of the model: none can join a trained model, and of one that leaves the others still read the rest."""


@every_architecture
@pytest.mark.parametrize("task", OUTPUTS)
def test_a_task_leaves_and_the_others_stay_as_they_are_bit_by_bit(kind: str, task: str) -> None:
    whole, inputs = model_of(kind).eval(), inputs_of(kind, 4)
    staying = {other: width for other, width in OUTPUTS.items() if other != task}
    sharing_tasks = whole.read_by(staying)
    smaller, tensors = model_of(kind, seed=1, outputs=staying, sharing_tasks=sharing_tasks).eval(), whole.state_dict()
    smaller.load_state_dict({name: tensors[name] for name in smaller.state_dict()})
    before, after = whole(inputs, list(staying)), smaller(inputs)
    assert list(after) == list(staying)
    assert all(torch.equal(output, before[other]) for other, output in after.items())
    assert (task in sharing_tasks) == (kind in READ_EACH_OTHER or (kind == "aitm" and task != "assays"))
    left = [name for name in smaller.state_dict() if task in name.split(".")]
    assert not [name for name in left if task not in sharing_tasks or name.startswith("heads.")]


@every_architecture
def test_a_task_joins_and_the_others_stay_as_they_are_bit_by_bit(kind: str) -> None:
    few = {task: width for task, width in OUTPUTS.items() if task != "assays"}
    before, after = model_of(kind, outputs=few).eval(), model_of(kind, seed=1).eval()
    reads_as_before = [after.read_by([task]) == before.read_by([task]) for task in few]
    assert reads_as_before == [kind not in READ_EACH_OTHER] * len(few)
    if all(reads_as_before):
        after.load_state_dict({**after.state_dict(), **before.state_dict()})
        inputs = inputs_of(kind, 4)
        outputs = after(inputs, list(few))
        assert all(torch.equal(outputs[task], output) for task, output in before(inputs).items())


# ---- what is shared


@every_architecture
def test_parameters_are_counted_once(kind: str) -> None:
    model = model_of(kind)
    counts = describe(model)
    assert counts["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert counts["parameters"] == counts["shared"] + sum(counts["private"].values())
    encoder = 3 * 14 + 11 * (5 + 9 + 1) + 8 * (11 + 1)
    head = {"click": 9, "topic": 9 * 9 + 4 * 10, "assays": 27}
    if kind == "hard":
        assert counts["shared"] == encoder
        assert counts["private"] == head
    if kind == "single":
        assert counts["shared"] == 0
        assert counts["private"] == {task: encoder + size for task, size in head.items()}


@pytest.mark.parametrize("kind", ["hard", "mmoe"])
def test_outputs_come_from_the_representation(kind: str) -> None:
    model, inputs = model_of(kind), inputs_of(kind, 5)
    representation = model.representation(inputs)
    assert representation.shape == (5, 8)
    outputs = model.from_representation(representation, ["assays", "click"])
    assert list(outputs) == ["assays", "click"]
    for task, output in outputs.items():
        torch.testing.assert_close(output, model(inputs)[task])
