"""Merges as their users meet them: directories in, a directory out."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

import polytask
from merging.families import fine_tuned, tensors, write_family, write_model
from merging.in_memory import assembled, merged
from merging.test_lora import pair, product, write_adapter
from polytask.checkpoints import read_checkpoint, verify_checkpoint
from polytask.core.errors import PolytaskError
from training.runs import recipe, table

PLAN: dict[str, Any] = {"base": "base", "tasks": {"a": "a", "b": "b"}, "rule": {"kind": "ties", "density": 0.5}}


def command(*arguments: object, folder: Path) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "polytask", "merge", *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, check=False, cwd=folder)


def write_plan(folder: Path, **changes: Any) -> Path:
    (folder / "plan.yaml").write_text(yaml.safe_dump({**PLAN, **changes}))
    return folder / "plan.yaml"


def test_a_plan_and_the_same_from_options_give_the_same_bytes(tmp_path: Path) -> None:
    write_family(tmp_path)
    write_plan(tmp_path)
    ended = command("plan.yaml", "--out", "first", folder=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert "9 tensors merged by ties, 0 taken over, 0 left out" in ended.stdout
    assert "Least alike: a and b, cosine " in ended.stdout
    options = ["--rule", "ties", "--base", "base", "--task", "a=a", "--task", "b=b", "--set", "density=0.5"]
    ended = command(*options, "--out", "second", "--json", folder=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)["tensors"]["merged"] == 9
    first, second = (tmp_path / name / "model.safetensors" for name in ("first", "second"))
    assert first.read_bytes() == second.read_bytes()
    expected = merged(assembled(tmp_path, PLAN))
    found = load_file(first)
    assert sorted(found) == sorted(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_the_output_says_where_it_came_from_and_its_plan_does_it_again(tmp_path: Path) -> None:
    write_family(tmp_path)
    write_plan(tmp_path, seed=3)
    out = tmp_path / "out"
    polytask.merge(tmp_path / "plan.yaml", out=out)
    card = verify_checkpoint(out).card
    assert (card["rule"], card["seed"], card["donor"]) == ("ties", 3, "base")
    assert list(card["parents"]) == ["base", "a", "b"]
    hashes = card["parents"]["a"]["files"]["model.safetensors"]
    assert hashes["bytes"] == (tmp_path / "a" / "model.safetensors").stat().st_size
    assert (out / "config.json").read_bytes() == (tmp_path / "base" / "config.json").read_bytes()
    assert "| base | `base` |" in (out / "README.md").read_text()
    shutil.copy(out / "plan.yaml", tmp_path / "again.yaml")
    polytask.merge(tmp_path / "again.yaml", out=tmp_path / "again")
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()
    measured = json.loads((out / "interference.json").read_text())
    assert measured["whole"]["cosines"][0][0] == pytest.approx(1.0)
    kept = measured["whole"]["kept"]
    share = sum(value.numel() // 2 for value in load_file(out / "model.safetensors").values()) / 112
    assert kept[0][0] == pytest.approx(share)  # half of each tensor, or one more for all together
    assert 0 < kept[0][1] < kept[0][0]
    assert [layer["layer"] for layer in measured["layers"]] == [
        "model.embed_tokens",
        *(f"model.layers.{number}" for number in range(3)),
        "lm_head",
        "model.norm",
    ]


def test_shards_and_a_merge_over_an_earlier_one(tmp_path: Path) -> None:
    write_family(tmp_path)
    polytask.merge(write_plan(tmp_path, shard_size=200), out=tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors.index.json").is_file()
    polytask.merge(write_plan(tmp_path), out=tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").glob("model*")) == ["model.safetensors"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "a merge needs PLAN, or --rule NAME and --task NAME=MODEL"),
        (["nowhere.yaml"], "nowhere.yaml: no such plan"),
        (["base"], "base: is a folder; allowed: a plan's file (or --rule, --base and --task)"),
        (["plan.yaml", "--rule", "ties"], "--rule is 'ties'; allowed: nothing beside a plan"),
        (
            ["--rule", "ties", "--task", "a"],
            "--task is 'a'; allowed: NAME=MODEL, such as --task reviews=models/reviews",
        ),
        (["--rule", "ties", "--task", "a=a", "--task", "a=b"], "allowed: a name that is not taken; a is a"),
        (["--rule", "ties", "--task", "a=a"], "rule 'ties' merges differences to a base: give one, base: DIR"),
        (["plan.yaml", "--set", "rule.densty=1"], "no parameter 'densty' (did you mean 'density'?)"),
        (
            ["plan.yaml", "--set", "density"],
            "a setting is 'density'; allowed: path.to.key=value, such as rule.density=0.2",
        ),
        (["plan.yaml", "--compat", "mergekit"], "--compat is 'mergekit'; allowed: only with a mergekit file"),
        (["plan.yaml", "--compat", "peft"], "--compat is 'peft'; allowed: mergekit"),
        (["plan.yaml", "--memory", "lots"], "memory is 'lots'; allowed: a size such as 5GB"),
        (["broken.yaml"], "broken.yaml, line 1: not valid YAML"),
        (["list.yaml"], "list.yaml: a plan is [1]; allowed: a mapping"),
    ],
)
def test_bad_input_is_one_line(tmp_path: Path, polytask_command: Any, arguments: list[str], message: str) -> None:
    write_family(tmp_path)
    write_plan(tmp_path)
    (tmp_path / "broken.yaml").write_text("rule: [")
    (tmp_path / "list.yaml").write_text("[1]")
    error = polytask_command(tmp_path, "merge", *arguments, "--out", "out")
    assert message in error
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def polytask_command() -> Any:
    """Runs a command in this process, as the entry point does; its one line on stderr."""
    from typer.testing import CliRunner

    from polytask.cli import app

    def run(folder: Path, *arguments: str) -> str:
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            ended = CliRunner().invoke(app, arguments)
        lines = ended.stderr.splitlines()
        assert (ended.exit_code, len(lines)) == (2, 1), (ended.output, ended.exception)
        return lines[0]

    return run


def test_nan_in_an_input_leaves_nothing_behind(tmp_path: Path) -> None:
    family = write_family(tmp_path, "a")
    family["a"]["model.norm.weight"][2] = float("nan")
    write_model(tmp_path / "b", family["a"])
    with pytest.raises(PolytaskError, match=r"b/model.safetensors: tensor 'model.norm.weight' is nan at index 2"):
        polytask.merge(write_plan(tmp_path), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_adapters_merge_as_the_products_that_they_are(tmp_path: Path) -> None:
    family = write_family(tmp_path, "a")
    name, module = "model.layers.1.mlp.weight", "model.layers.1.mlp"
    factors = {task: pair(module, 4, 4, seed=number) for number, task in enumerate("xy")}
    write_adapter(tmp_path / "x", factors["x"])
    write_adapter(tmp_path / "y", factors["y"], use_rslora=True)
    plan = {"base": "base", "tasks": {"x": "x", "y": "y"}, "rule": {"kind": "task_arithmetic", "weights": {"y": -0.5}}}
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan))
    found = polytask.merge(tmp_path / "plan.yaml", out=tmp_path / "out")
    change = product(factors["x"], module, 6 / 3) - 0.5 * product(factors["y"], module, 6 / 3**0.5)
    weights = load_file(tmp_path / "out" / "model.safetensors")
    torch.testing.assert_close(weights[name].double(), family["base"][name].double() + change, rtol=1e-6, atol=1e-6)
    others = [other for other in weights if other != name]
    assert all(torch.equal(weights[other], family["base"][other]) for other in others)
    assert found["interference"]["elements"] == sum(value.numel() for value in weights.values())
    assert not list(tmp_path.glob("**/*merged*"))


def test_a_merge_of_transformers_models_opens_unchanged(tmp_path: Path) -> None:
    from transformers import AutoModel, AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification

    options = {"vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = BertConfig(**options, intermediate_size=16, max_position_embeddings=8)
    torch.manual_seed(0)
    model = BertForSequenceClassification(config)
    base = {name: value.clone() for name, value in model.state_dict().items()}
    for number, name in enumerate(("base", "a", "b")):
        model.load_state_dict(fine_tuned(base, number, 0.01 if number else 0.0))
        model.save_pretrained(tmp_path / name)
    polytask.merge(write_plan(tmp_path), out=tmp_path / "out")
    opened = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    expected = merged(assembled(tmp_path, PLAN))
    assert all(torch.equal(opened.state_dict()[name], value) for name, value in expected.items())
    inputs = torch.tensor([[1, 2, 3]])
    assert opened(inputs).logits.shape == (1, 2)
    assert AutoModel.from_pretrained(tmp_path / "out")(inputs).last_hidden_state.shape == (1, 3, 8)


def test_the_config_follows_what_the_plan_changes(tmp_path: Path) -> None:
    config = {"model_type": "toy", "num_hidden_layers": 3, "vocab_size": 6, "torch_dtype": "float32"}
    base = tensors(0)
    for name, values in (("base", base), ("b", fine_tuned(base, 1))):
        write_model(tmp_path / name, values, config)
    larger = {name: torch.cat([value, torch.ones(2, 4)]) if len(value) == 6 else value for name, value in base.items()}
    write_model(tmp_path / "a", fine_tuned(larger, 0), {**config, "vocab_size": 8})
    (tmp_path / "b" / "generation_config.json").write_text("{}")
    (tmp_path / "b" / "training_args.bin").write_bytes(b"")
    polytask.merge(write_plan(tmp_path, vocabulary="largest", dtype="bfloat16", donor="b"), out=tmp_path / "out")
    found = json.loads((tmp_path / "out" / "config.json").read_text())
    assert found == {**config, "vocab_size": 8, "torch_dtype": "bfloat16"}
    assert (tmp_path / "out" / "generation_config.json").is_file()
    assert not (tmp_path / "out" / "training_args.bin").exists()
    slices = [{"inputs": {"b": {"layers": [0, 3]}}}, {"inputs": {"b": {"layers": [1, 3]}}}]
    plan = {"tasks": {"b": "b"}, "rule": "passthrough", "slices": slices}
    polytask.merge(write_plan(tmp_path, base=None, **plan), out=tmp_path / "stacked")
    assert json.loads((tmp_path / "stacked" / "config.json").read_text())["num_hidden_layers"] == 5
    assert "model.layers.4.mlp.weight" in load_file(tmp_path / "stacked" / "model.safetensors")


def test_each_slice_has_as_many_models_as_its_rule_takes(tmp_path: Path) -> None:
    """Layers of one model on those of another; and halfway between two of three models in each slice."""
    family = write_family(tmp_path, "abc")
    one, other = {"inputs": {"a": {"layers": [0, 2]}}}, {"inputs": {"b": {"layers": [1, 3]}}}
    plan = {"tasks": {"a": "a", "b": "b"}, "rule": "passthrough", "slices": [one, other]}
    polytask.merge(write_plan(tmp_path, base=None, **plan), out=tmp_path / "stacked")
    stacked = load_file(tmp_path / "stacked" / "model.safetensors")
    for layer, (model, own) in enumerate((("a", 0), ("a", 1), ("b", 1), ("b", 2))):
        wanted = family[model][f"model.layers.{own}.mlp.weight"]
        assert torch.equal(stacked[f"model.layers.{layer}.mlp.weight"], wanted)
    pairs = [
        {"inputs": {task: {"layers": layers} for task in both}} for both, layers in (("ab", [0, 1]), ("bc", [1, 3]))
    ]
    plan = {"tasks": {task: task for task in "abc"}, "rule": {"kind": "slerp", "straight": -1.0}, "slices": pairs}
    polytask.merge(write_plan(tmp_path, base=None, **plan), out=tmp_path / "pairs")
    found = load_file(tmp_path / "pairs" / "model.safetensors")
    for layer, both in enumerate(("ab", "bc", "bc")):
        name = f"model.layers.{layer}.mlp.weight"
        torch.testing.assert_close(found[name], sum(family[task][name] for task in both) / 2)


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base, a model of four tasks, and two experts of one task each that started from it."""
    folder = tmp_path_factory.mktemp("experts")
    rows = table()
    polytask.train(recipe(), out=folder / "base", data={"data": rows})
    for task in ("click", "topic"):
        own = recipe(tasks={task: recipe()["tasks"][task]}, model__init_from=str(folder / "base" / "best"))
        others = [label for label in recipe()["tasks"] if label != task]
        seen = {column: values for column, values in rows.items() if column not in others}
        polytask.train(own, out=folder / task, data={"data": seen})
    return folder


def test_a_merge_of_polytask_models_predicts_every_task(experts: Path, tmp_path: Path) -> None:
    plan = {
        "base": str(experts / "base"),
        "tasks": {task: str(experts / task) for task in ("click", "topic")},
        "rule": {"kind": "task_arithmetic", "scale": 0.5},
    }
    found = polytask.merge(plan, out=tmp_path / "out")
    assert list(found["tensors"]["left_out"]) == [
        name
        for name in read_checkpoint(experts / "base" / "best").tensors()
        if name.startswith(("heads.buy", "heads.pr"))
    ]
    model, rows = polytask.load(tmp_path / "out"), table()
    predictions = model.predict(rows)
    assert {"click", "topic"} <= set(predictions.columns)
    weights = {name: read_checkpoint(experts / name / "best").tensors() for name in ("base", "click", "topic")}
    own = model.model.state_dict()
    for name, value in own.items():
        if name.startswith("heads."):
            task = name.split(".")[1]
            assert torch.equal(value, weights[task][name])
        else:
            base = weights["base"][name]
            expected = base + 0.5 * (weights["click"][name] - base + weights["topic"][name] - base)
            torch.testing.assert_close(value, expected)
    scores = model.evaluate(rows)
    assert all(np.isfinite(scores[task]["accuracy"]) for task in ("click", "topic"))
    assert verify_checkpoint(tmp_path / "out").card["tasks"]["topic"]["kind"] == "multiclass"


def test_models_of_which_one_has_lost_a_task_that_others_read_are_refused(tmp_path: Path) -> None:
    settings = recipe(model__sharing={"kind": "cross_stitch", "hidden_sizes": [4]})
    polytask.train(settings, out=tmp_path / "base", data={"data": table()})
    polytask.heads.detach(tmp_path / "base", ["buy"], tmp_path / "other")
    plan = {"base": str(tmp_path / "base"), "tasks": {"other": str(tmp_path / "other")}, "rule": "task_arithmetic"}
    with pytest.raises(
        PolytaskError, match=r"config.json: sharing_tasks is None in base and \['click', 'buy', .* in other"
    ):
        polytask.merge(plan, out=tmp_path / "out")


def test_polytask_models_with_other_inputs_are_refused(experts: Path, tmp_path: Path) -> None:
    rows = table()
    polytask.train(recipe(data__drop=["x0"]), out=tmp_path / "other", data={"data": rows})
    plan = {"base": str(experts / "base"), "tasks": {"other": str(tmp_path / "other")}, "rule": "task_arithmetic"}
    with pytest.raises(
        PolytaskError,
        match=r"config.json: inputs.shapes.numeric is \[4\] in base and \[3\] in other: not the same model",
    ):
        polytask.merge(plan, out=tmp_path / "out")
