"""What a plan comes to, tensor by tensor, and every way in which models may not fit."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from merging.families import LAYERS, TOKENS, WIDTH, fine_tuned, tensors, write_family, write_model
from merging.in_memory import assembled, merged, values
from polytask.core.errors import PolytaskError
from polytask.merging.contract import Pipeline
from polytask.merging.jobs import Take

PLAN: dict[str, Any] = {"base": "base", "tasks": {"a": "a", "b": "b"}, "rule": "task_arithmetic"}


def rule(name: str, **parameters: Any) -> dict[str, Any]:
    return {"kind": name, **parameters}


def weights_of(assembly: Any, name: str, tasks: tuple[str, ...] = ("a", "b")) -> list[float]:
    """The weights with which a tensor is merged."""
    job = next(job for job in assembly.jobs if job.name == name)
    return job.pipeline.rule.numbers(tasks)["weights"].tolist()


def test_every_tensor_of_the_base_is_merged_in_its_order(tmp_path: Path) -> None:
    family = write_family(tmp_path)
    assembly = assembled(tmp_path, PLAN)
    assert sorted(job.name for job in assembly.jobs) == sorted(family["base"])
    assert (assembly.left_out, assembly.notes) == ({}, [])
    assert len({id(job.pipeline) for job in assembly.jobs}) == 1
    found = merged(assembly)
    for name, base in family["base"].items():
        expected = base.double() + sum(family[task][name].double() - base.double() for task in "ab")
        torch.testing.assert_close(found[name].double(), expected, rtol=1e-6, atol=1e-6)


def test_a_rule_on_models_takes_no_base(tmp_path: Path) -> None:
    family = write_family(tmp_path)
    for base in ({}, {"base": "base"}):
        assembly = assembled(tmp_path, {**base, "tasks": PLAN["tasks"], "rule": rule("linear", weights={"a": 3})})
        name = "model.norm.weight"
        expected = (3 * family["a"][name] + family["b"][name]) / 4
        torch.testing.assert_close(merged(assembly)[name], expected)


def test_parameters_go_from_the_task_to_the_rule(tmp_path: Path) -> None:
    write_family(tmp_path)
    tasks = {"a": {"model": "a", "parameters": {"weights": 0.25}}, "b": "b"}
    assembly = assembled(tmp_path, {**PLAN, "tasks": tasks, "rule": rule("task_arithmetic", weights={"b": 2, "a": 9})})
    assert weights_of(assembly, "lm_head.weight") == [0.25, 2.0]
    assembly = assembled(tmp_path, {**PLAN, "tasks": tasks})
    assert weights_of(assembly, "lm_head.weight") == [0.25, 1.0]


def test_parameters_by_pattern_and_depth(tmp_path: Path) -> None:
    write_family(tmp_path)
    by_name = [{"pattern": "*.mlp.*", "value": [0, 1]}, {"value": 5}]
    assembly = assembled(tmp_path, {**PLAN, "rule": rule("task_arithmetic", weights={"a": by_name, "b": [2, 4, 2]})})
    assert weights_of(assembly, "model.layers.0.mlp.weight") == [0.0, 2.0]
    assert weights_of(assembly, "model.layers.1.mlp.weight") == [0.5, 4.0]
    assert weights_of(assembly, "model.layers.1.norm.weight") == [5.0, 4.0]
    assert weights_of(assembly, "model.embed_tokens.weight") == [5.0, 2.0]
    depths = {job.name: job.depth for job in assembly.jobs}
    assert depths["model.embed_tokens.weight"] == 0.0
    assert depths["model.norm.weight"] == depths["lm_head.weight"] == 1.0


def test_a_pattern_without_a_match_falls_to_the_next_level(tmp_path: Path) -> None:
    write_family(tmp_path)
    own = {"model": "a", "parameters": {"weights": [{"pattern": "lm_head.*", "value": 7}]}}
    assembly = assembled(tmp_path, {**PLAN, "tasks": {"a": own, "b": "b"}, "rule": rule("task_arithmetic", weights=3)})
    assert weights_of(assembly, "lm_head.weight") == [7.0, 3.0]
    assert weights_of(assembly, "model.norm.weight") == [3.0, 3.0]


def test_transforms_come_before_those_of_the_method(tmp_path: Path) -> None:
    write_family(tmp_path)
    plan = {**PLAN, "transforms": [{"kind": "trim", "density": 0.5}], "rule": rule("ties", density=1, scale=0.3)}
    pipeline = assembled(tmp_path, plan).jobs[0].pipeline
    assert isinstance(pipeline, Pipeline)
    assert [step.parameters["density"] for step in pipeline.transforms] == [0.5, 1]
    assert pipeline.scale == 0.3


@pytest.mark.parametrize(
    "change, message",
    [
        ({"rule": "tise"}, "no merge method 'tise' (did you mean 'ties'?); allowed: "),
        ({"rule": rule("ties", densty=0.2)}, "plan.rule (ties): no parameter 'densty' (did you mean 'density'?)"),
        ({"rule": rule("ties", density=2)}, "density is 2; allowed: a number in (0, 1], or {task: number}"),
        ({"rule": rule("ties", scope="model")}, "scope is 'model'; allowed: tensor | layer | all"),
        (
            {"rule": rule("ties", scope={"a": "tensor"})},
            "no parameter with a number a task 'scope'; allowed: density, ",
        ),
        ({"transforms": ["trimm"]}, "no transform 'trimm' (did you mean 'trim'?); allowed: trim"),
        ({"tasks": {"a": {"model": "a", "parameters": {"wieghts": 1}}}}, "no parameter 'wieghts' (did you mean 'weig"),
        (
            {"tasks": {"a": {"model": "a", "parameters": {"scale": 1}}}},
            "plan.tasks.a (task_arithmetic): no parameter wit",
        ),
        ({"rule": "uncertainty"}, "rule 'uncertainty' needs losses; merging has task vectors, no losses"),
        ({"base": None}, "rule 'task_arithmetic' merges differences to a base: give one, base: DIR"),
        ({"base": "bse"}, "bse: no such directory or file"),
        (
            {"rule": rule("task_arithmetic", weights=[{"pattern": "*.mpl.*", "value": 1}])},
            "plan.rule: no tensor that fits the pattern '*.mpl.*'",
        ),
        ({"keep": [{"pattern": "head.weight"}]}, "'head.weight' (did you mean 'lm_head.weight'?)"),
    ],
)
def test_spelling_is_checked(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    write_family(tmp_path)
    with pytest.raises(PolytaskError) as caught:
        assembled(tmp_path, {**PLAN, **change})
    assert message in str(caught.value)


def test_a_rule_for_two_models_takes_two(tmp_path: Path) -> None:
    write_family(tmp_path, "abc")
    tasks = {task: task for task in "abc"}
    with pytest.raises(PolytaskError, match="rule 'slerp': the number of tasks is 3; allowed: 2"):
        assembled(tmp_path, {"tasks": tasks, "rule": "slerp"})
    assert assembled(tmp_path, {"base": "base", "tasks": {"a": "a"}, "rule": "nearswap"}).jobs


def without(values: dict[str, torch.Tensor], *names: str) -> dict[str, torch.Tensor]:
    return {name: value for name, value in values.items() if name not in names}


def write_partial(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    """b lacks the head, and a has a bias that no other has."""
    base = tensors(0)
    family = {
        "base": base,
        "a": {**fine_tuned(base, 0), "lm_head.bias": torch.ones(TOKENS)},
        "b": without(fine_tuned(base, 1), "lm_head.weight"),
    }
    for name, model in family.items():
        write_model(folder / name, model)
    return family


def test_a_tensor_that_only_some_have_is_an_error(tmp_path: Path) -> None:
    write_partial(tmp_path)
    with pytest.raises(
        PolytaskError, match=r"'lm_head.weight' is in base and a and not in b; say what to do: partial: "
    ):
        assembled(tmp_path, PLAN)


def test_partial_base(tmp_path: Path) -> None:
    family = write_partial(tmp_path)
    assembly = assembled(tmp_path, {**PLAN, "partial": "base"})
    assert assembly.left_out == {"lm_head.bias": "partial: base, and the base lacks it"}
    torch.testing.assert_close(merged(assembly)["lm_head.weight"], family["a"]["lm_head.weight"])
    assert assembly.notes == [
        "partial: base, an input without it counts as the base: lm_head.weight",
        "left out (partial: base, and the base lacks it): lm_head.bias",
    ]


def test_partial_available(tmp_path: Path) -> None:
    family = write_partial(tmp_path)
    assembly = assembled(tmp_path, {**PLAN, "partial": "available", "rule": rule("task_arithmetic", weights={"b": 3})})
    found = merged(assembly)
    torch.testing.assert_close(found["lm_head.weight"], family["a"]["lm_head.weight"])
    assert torch.equal(found["lm_head.bias"], torch.ones(TOKENS))
    assert "taken over from a, which alone has it: lm_head.bias" in assembly.notes


def test_partial_drop_and_keep(tmp_path: Path) -> None:
    family = write_partial(tmp_path)
    assembly = assembled(tmp_path, {**PLAN, "partial": "drop"})
    assert sorted(assembly.left_out) == ["lm_head.bias", "lm_head.weight"]
    keep = [{"pattern": "lm_head.w*", "take": "a"}, {"pattern": "lm_head.*", "take": "drop"}]
    assembly = assembled(tmp_path, {**PLAN, "keep": keep})
    assert torch.equal(merged(assembly)["lm_head.weight"], family["a"]["lm_head.weight"])
    assert assembly.left_out == {"lm_head.bias": "keep: drop"}
    with pytest.raises(PolytaskError, match=r"'b' has no tensor 'lm_head.weight'; base and a have it"):
        assembled(tmp_path, {**PLAN, "keep": [{"pattern": "lm_head.*", "take": "b"}]})


def test_heads_that_the_base_lacks_cannot_be_merged_as_differences(tmp_path: Path) -> None:
    base = tensors(0)
    write_model(tmp_path / "base", without(base, "lm_head.weight"))
    for number, task in enumerate("ab"):
        write_model(tmp_path / task, fine_tuned(base, number))
    with pytest.raises(
        PolytaskError, match=r"the base lacks 'lm_head.weight', which a and b have, so there is no differ"
    ):
        assembled(tmp_path, {**PLAN, "partial": "available"})


def test_a_prefix_is_found_and_taken_off(tmp_path: Path) -> None:
    base = tensors(0)
    write_model(tmp_path / "base", base)
    for number, task in enumerate("ab"):
        write_model(tmp_path / task, {f"bert.{name}": value for name, value in fine_tuned(base, number).items()})
    with pytest.raises(PolytaskError, match=r"tasks.a.prefix: bert\.\)"):
        assembled(tmp_path, PLAN)
    tasks = {task: {"model": task, "prefix": "bert."} for task in "ab"}
    assert sorted(job.name for job in assembled(tmp_path, {**PLAN, "tasks": tasks}).jobs) == sorted(base)
    with pytest.raises(PolytaskError, match=r"prefix is 'brt\.'; allowed: the beginning of a name, such as 'bert\."):
        assembled(tmp_path, {**PLAN, "tasks": {"a": {"model": "a", "prefix": "brt."}}})


def test_a_shape_that_differs_is_an_error(tmp_path: Path) -> None:
    family = write_family(tmp_path, "a")
    write_model(tmp_path / "b", {**family["a"], "model.norm.weight": torch.ones(WIDTH, 2)})
    with pytest.raises(PolytaskError, match=r"'model.norm.weight' differs in shape: base \[4\], a \[4\], b \[4, 2\]"):
        assembled(tmp_path, PLAN)


def test_types_that_differ_need_the_outputs(tmp_path: Path) -> None:
    family = write_family(tmp_path, "a")
    write_model(tmp_path / "b", {name: value.bfloat16() for name, value in family["a"].items()})
    with pytest.raises(PolytaskError, match=r"is float32 in base, float32 in a, bfloat16 in b; say the output's type"):
        assembled(tmp_path, PLAN)
    assembly = assembled(tmp_path, {**PLAN, "dtype": "float16"})
    assert {job.dtype for job in assembly.jobs} == {torch.float16}


def with_counter(values: dict[str, torch.Tensor], count: int) -> dict[str, torch.Tensor]:
    return {**values, "bn.num_batches_tracked": torch.tensor(count)}


@pytest.mark.parametrize("treatment, expected", [("base", 3), ("largest", 9)])
def test_whole_numbers_are_not_merged(tmp_path: Path, treatment: str, expected: int) -> None:
    base = tensors(0)
    for number, (name, count) in enumerate({"base": 3, "a": 9, "b": 5}.items()):
        write_model(tmp_path / name, with_counter(fine_tuned(base, number), count))
    found = merged(assembled(tmp_path, {**PLAN, "integers": treatment}))["bn.num_batches_tracked"]
    assert (found.item(), found.dtype) == (expected, torch.int64)


def test_whole_numbers_may_have_to_be_equal(tmp_path: Path) -> None:
    base = tensors(0)
    for number, name in enumerate(("base", "a", "b")):
        write_model(tmp_path / name, with_counter(fine_tuned(base, number), 3))
    assembly = assembled(tmp_path, {**PLAN, "integers": "error"})
    assert next(job for job in assembly.jobs if job.name.startswith("bn")).pipeline == Take(equal=True)


def test_whole_numbers_and_fractions_under_one_name_are_refused(tmp_path: Path) -> None:
    family = write_family(tmp_path, "a")
    write_model(tmp_path / "b", {**family["a"], "model.norm.weight": torch.ones(WIDTH, dtype=torch.int64)})
    with pytest.raises(PolytaskError, match=r"'model.norm.weight' has types torch.float32, torch.int64"):
        assembled(tmp_path, PLAN)


def write_vocabularies(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    """a has two more tokens than base and b."""
    base = tensors(0)
    larger = fine_tuned(tensors(0, tokens=TOKENS + 2), 0)
    family = {"base": base, "a": larger, "b": fine_tuned(base, 1)}
    for name, model in family.items():
        write_model(folder / name, model)
    return family


def test_vocabularies_of_different_size(tmp_path: Path) -> None:
    family = write_vocabularies(tmp_path)
    name = "lm_head.weight"
    with pytest.raises(
        PolytaskError, match=r"has 6 rows in base, 8 rows in a, 6 rows in b; say what to do, vocabulary"
    ):
        assembled(tmp_path, PLAN)
    smaller = assembled(tmp_path, {**PLAN, "vocabulary": "base"})
    larger = assembled(tmp_path, {**PLAN, "vocabulary": "largest"})
    common = family["base"][name] + sum(family[task][name][:TOKENS] - family["base"][name] for task in "ab")
    torch.testing.assert_close(merged(smaller)[name], common)
    torch.testing.assert_close(merged(larger)[name][:TOKENS], common)
    assert torch.equal(merged(larger)[name][TOKENS:], family["a"][name][TOKENS:])
    assert "vocabulary: largest, 8 rows: lm_head.weight and 1 more" in larger.notes


def test_a_tied_head_that_only_some_saved_is_left_out(tmp_path: Path) -> None:
    base, config = tensors(0), {"model_type": "toy", "tie_word_embeddings": True}
    write_model(tmp_path / "base", without(base, "lm_head.weight"), config)
    write_model(tmp_path / "a", fine_tuned(base, 0), config)
    write_model(tmp_path / "b", without(fine_tuned(base, 1), "lm_head.weight"), config)
    assembly = assembled(tmp_path, PLAN)
    assert assembly.left_out == {"lm_head.weight": "a second name of a tied tensor, which the base lacks"}
    with pytest.raises(PolytaskError, match=r"'lm_head.weight' is in a and not in base and b"):
        assembled(tmp_path, {**PLAN, "tied": "error"})


def test_slices_build_a_model_from_layers(tmp_path: Path) -> None:
    family = write_family(tmp_path)
    slices = [{"inputs": {"a": {"layers": [0, 2]}}}, {"inputs": {"b": {"layers": [1, 3]}}}]
    assembly = assembled(tmp_path, {"tasks": PLAN["tasks"], "rule": "linear", "slices": slices})
    found = {job.name: values(next(iter(job.inputs.values()))) for job in assembly.jobs}
    assert [name for name in found if ".mlp." in name] == [f"model.layers.{layer}.mlp.weight" for layer in range(4)]
    for output, (task, layer) in enumerate([("a", 0), ("a", 1), ("b", 1), ("b", 2)]):
        expected = family[task][f"model.layers.{layer}.mlp.weight"]
        assert torch.equal(found[f"model.layers.{output}.mlp.weight"], expected)
    assert torch.equal(found["model.embed_tokens.weight"], family["a"]["model.embed_tokens.weight"])
    assert torch.equal(found["lm_head.weight"], family["b"]["lm_head.weight"])
    assert [job.depth for job in assembly.jobs if ".mlp." in job.name] == [0.0, 1.0, 0.0, 1.0]


def test_depth_is_counted_in_each_slice_whatever_the_others_lengths(tmp_path: Path) -> None:
    write_family(tmp_path)
    slices = [{"inputs": {task: {"layers": layers}}} for task, layers in (("a", [0, 2]), ("b", [0, 3]), ("a", [1, 2]))]
    assembly = assembled(tmp_path, {"tasks": PLAN["tasks"], "rule": "linear", "slices": slices})
    assert [job.depth for job in assembly.jobs if ".mlp." in job.name] == [0.0, 1.0, 0.0, 0.5, 1.0, 1.0]


def test_slices_with_a_base_and_parameters_of_their_own(tmp_path: Path) -> None:
    family = write_family(tmp_path)
    first = {"inputs": {"a": {"layers": [0, 1], "parameters": {"weights": 2}}, "b": {"layers": [0, 1]}}}
    second = {"inputs": {"a": {"layers": [1, LAYERS]}}, "parameters": {"weights": 0.5}}
    assembly = assembled(tmp_path, {**PLAN, "slices": [first, second]})
    assert weights_of(assembly, "model.layers.0.mlp.weight") == [2.0, 1.0]
    name = "model.layers.2.mlp.weight"
    expected = family["base"][name] + 0.5 * (family["a"][name] - family["base"][name])
    torch.testing.assert_close(merged(assembly)[name], expected)


@pytest.mark.parametrize(
    "slices, message",
    [
        ([{"inputs": {"a": {"layers": [0, 4]}}}], "no layer 3 in 'model.layers'; it has 0 to 2"),
        (
            [{"inputs": {"a": {"layers": [0, 2]}, "b": {"layers": [0, 3]}}}],
            "the inputs give different numbers of layers: {'a': 2, 'b': 3}",
        ),
    ],
)
def test_slices_that_do_not_fit(tmp_path: Path, slices: list[dict], message: str) -> None:
    write_family(tmp_path)
    with pytest.raises(PolytaskError) as caught:
        assembled(tmp_path, {**PLAN, "slices": slices})
    assert message in str(caught.value)


def test_quantised_tensors_are_refused(tmp_path: Path) -> None:
    base = {"w": torch.ones(2, 2).to(torch.float8_e4m3fn)}
    for name in ("base", "a", "b"):
        write_model(tmp_path / name, base)
    with pytest.raises(PolytaskError, match=r"the type of 'w' is 'float8_e4m3fn'; allowed: .* merge before quantising"):
        assembled(tmp_path, PLAN)


def test_an_index_names_missing_files(tmp_path: Path) -> None:
    write_family(tmp_path, "a")
    (tmp_path / "b").mkdir()
    index = {"weight_map": {"x": "model-00001-of-00002.safetensors"}}
    (tmp_path / "b" / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(PolytaskError, match=r"index.json: names model-00001-of-00002.safetensors, which is missing"):
        assembled(tmp_path, PLAN)
    (tmp_path / "b" / "model.safetensors.index.json").unlink()
    with pytest.raises(PolytaskError, match=r"b: no weights here; expected \*.safetensors"):
        assembled(tmp_path, PLAN)
