"""The recipe's schema: one recipe for each case of its description, each mistake named in its place, and back again."""

from pathlib import Path

import pytest
import yaml

from polytask.core.documents import changed, parsed_settings
from polytask.core.errors import BadValue, DataError, PolytaskError, UnknownName
from polytask.recipes.json_schema import recipe_schema, shipped_schema
from polytask.recipes.reading import parsed_variations, read_recipe
from polytask.recipes.schema import Recipe
from polytask.sharing import ENCODERS

BASE = """
version: 1
data: {table: x.csv}
tasks: {a: binary, b: {kind: regression, label: price}}
"""

DATA = {
    "a file and a split column": "{table: x.parquet, split: split, drop: [weight]}",
    "a glob": "{table: 'part-*.parquet'}",
    "fractions": "{table: x.csv, split: {fractions: [.7, .1, .2], seed: 0}}",
    "time": "{table: x.csv, split: {time: ts, fractions: [.7, .1, .2]}}",
    "group": "{table: x.csv, split: {group: user, seed: 1}}",
    "scaffold": "{table: x.csv, split: {scaffold: smiles}}",
    "values of a split column": "{table: x.csv, split: {column: fold, train: [0, 1], valid: 2, test: 3}}",
    "molecules": "{table: x.csv, features: {smiles: {kind: morgan, radius: 2, bits: 2048}}}",
    "a stream": "{table: x.csv, stream: {buffer_rows: 1000}}",
    "always a stream": "{table: x.csv, stream: true}",
    "degenerate tasks": "{table: x.csv, degenerate: drop}",
    "images": "{images: x.csv, root: pictures}",
    "arrays": "{arrays: x.npz}",
    "bundled data": "{builtin: multidigits, rows: {train: 100, valid: 10, test: 10}}",
    "a sample": "{table: x.csv, rows: 1000}",
    "named sources": "{sources: {a: {table: a.csv}, b: {table: b.csv, split: fold}}, split: split}",
}
TASKS = {
    "defaults": ("{a: {kind: binary, positive: '50000+'}}", "{metric: auroc}"),
    "a click before a conversion": ("{click: binary, sale: {kind: binary, label: conversion, where: click}}", "{}"),
    "one task a column": ("{assays: {kind: binary, labels: [NR-AR, NR-AhR, SR-p53]}}", "{}"),
    "several labels a row": ("{tags: {kind: multilabel, labels: [x, y]}}", "{}"),
    "declared classes": ("{a: {kind: multiclass, classes: [S, M, L], ignore: unknown}}", "{}"),
    "roles and priorities": ("{a: {kind: regression, role: auxiliary, priority: 2, loss: huber}}", "{}"),
    "heads and attributes": ("{a: {kind: binary, head: {hidden_sizes: [8]}, domain: shop, index: 3}}", "{}"),
}
MODELS = {
    "short forms": "{encoder: mlp, sharing: hard}",
    "tabular with experts": "{encoder: {kind: tabular, hidden_sizes: [256, 128]}, sharing: {kind: mmoe, experts: 8}}",
    "a start": "{init_from: runs/a/best, encoder: mlp}",
    "a pretrained encoder": "{encoder: {kind: transformer, pretrained: here, trainable: {last: 2}, pooling: mean}}",
    "one model a task": "{encoder: conv, sharing: single}",
}
TRAIN = {
    "short forms": "{rule: pcgrad, optimizer: sgd, schedule: cosine, epochs: 2}",
    "long forms": "{rule: {kind: dwa, temperature: 1, scale: mean}, optimizer: {kind: adamw, lr: 1.0e-3}, steps: 3}",
    "parameters apart": "{rule: {kind: dwa, parameters: {temperature: 1}}}",
    "what holds for the run": "{seed: 3, threads: 1, evaluate_every: 10, checkpoint_every: end, precision: bf16}",
    "early stopping": "{epochs: 9, early_stopping: {patience: 2}, clip: 1, schedule: {kind: linear, warmup: 0.1}}",
    "a mixture": "{mixture: {kind: temperature, value: 2, batches: one_task}}",
}
STAGES = "[{name: warm, tasks: [a], trainable: [heads], epochs: 1}, {name: joint, mixture: uniform, rule: upgrad}]"


def parts() -> dict[str, dict]:
    """case -> what it replaces in the base."""
    found: dict[str, dict] = {f"data: {name}": {"data": yaml.safe_load(text)} for name, text in DATA.items()}
    for name, (tasks, defaults) in TASKS.items():
        found[f"tasks: {name}"] = {"tasks": yaml.safe_load(tasks), "task_defaults": yaml.safe_load(defaults)}
    found |= {f"model: {name}": {"model": yaml.safe_load(text)} for name, text in MODELS.items()}
    found |= {f"train: {name}": {"train": yaml.safe_load(text)} for name, text in TRAIN.items()}
    found["stages"] = {"stages": yaml.safe_load(STAGES), "run": {"seed": 1}}
    found["compare"] = {"compare": {"rules": ["equal", "upgrad"], "sharing": ["mmoe"], "seeds": 2}}
    return found


@pytest.mark.parametrize("case", parts())
def test_each_case_of_the_recipe_is_read_and_resolves_to_itself(case: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(BASE), **parts()[case]}, sort_keys=False))
    read = read_recipe(path)
    assert read.beside == tmp_path.resolve()
    resolved = yaml.safe_load(yaml.safe_dump(read.recipe.resolved()))
    again = read_recipe(resolved).recipe
    assert again.resolved() == read.recipe.resolved()
    assert again.task_list == read.recipe.task_list
    assert again.stages == read.recipe.stages


UNKNOWN = {
    "": "did you mean 'description'",
    "data": "did you mean 'degenerate'",
    "data.split": "did you mean 'fractions'",
    "data.sources.a": "did you mean 'table'",
    "data.rows": "did you mean 'valid'",
    "tasks.b": "did you mean 'metric'",
    "tasks.b.head": "did you mean 'hidden_sizes'",
    "task_defaults": "did you mean 'metric'",
    "model": "did you mean 'sharing'",
    "model.encoder": "did you mean 'hidden_sizes'",
    "model.sharing": "did you mean 'experts'",
    "train": "did you mean 'batch_size'",
    "train.optimizer": "did you mean 'weight_decay'",
    "train.schedule": "did you mean 'warmup'",
    "train.mixture": "did you mean 'batches'",
    "train.early_stopping": "did you mean 'patience'",
    "compare": "did you mean 'seeds'",
}
NEAR = {
    "description": "descripton",
    "degenerate": "degenerat",
    "fractions": "fraction",
    "table": "tabel",
    "valid": "vaild",
    "metric": "metrc",
    "hidden_sizes": "hiden_sizes",
    "sharing": "sharin",
    "experts": "expert",
    "batch_size": "batchsize",
    "weight_decay": "weigth_decay",
    "warmup": "warm_up",
    "batches": "batche",
    "patience": "patient",
    "seeds": "sedes",
}


@pytest.mark.parametrize("place", UNKNOWN)
def test_an_unknown_key_at_each_level_is_named_with_the_nearest(place: str) -> None:
    recipe = yaml.safe_load(BASE)
    recipe["model"] = {"encoder": {"kind": "mlp"}, "sharing": {"kind": "mmoe"}}
    recipe["train"] = {"optimizer": {"kind": "sgd"}, "schedule": {"kind": "linear"}, "mixture": {"kind": "uniform"}}
    recipe["train"]["early_stopping"] = {"patience": 1}
    if place == "data.sources.a":
        recipe["data"] = {"sources": {"a": {}}}
    expected = UNKNOWN[place].split("'")[1]
    path = ".".join(part for part in (place, NEAR[expected]) if part)
    with pytest.raises(UnknownName, match=f"no key '{NEAR[expected]}'.*{UNKNOWN[place]}") as caught:
        read_recipe(changed(recipe, path, 1))
    assert "stages" not in str(caught.value).partition(": no key")[0]


KINDS_OF_COLUMN = "numeric, piecewise_linear, categorical, multi_hot, "
WRONG = {
    "data.rows={test: 0}": "recipe.data.rows.test is 0; allowed: greater than or equal to 1",
    "data.rows=many": "recipe.data.rows is 'many'; allowed: a whole number, or a mapping, {key: value}",
    "tasks.b.source=3": "tasks.b: source is 3; allowed: text, or a list, [a, b]",
    "tasks.b.source=[a, 3]": "tasks.b: source.1 is 3; allowed: text",
    "tasks.b.positive=[1]": "tasks.b: positive is [1]; allowed: true or false, or a whole number, or a number, or text",
    "tasks.b.role=auxilary": "tasks.b: role is 'auxilary'; allowed: 'target', 'auxiliary' or 'training_only' "
    "(did you mean 'auxiliary'?)",
    "data.degenerate=dropp": "allowed: 'error', 'drop' or 'keep' (did you mean 'drop'?)",
    "data.features.x=molecul": f"features.x: no kind 'molecul' (did you mean 'molecule'?); allowed: {KINDS_OF_COLUMN}",
    "run=fast": "recipe.run is 'fast'; allowed: a mapping, {key: value}",
    "train.trainable=[]": "recipe.train.trainable is []; allowed: at least 1 of them",
    "train.optimizer={3: 4}": "recipe.train.optimizer: no key '3'; allowed: kind, lr",
    "tasks.b.head={3: 4}": "tasks.b.head: no key '3'; allowed: hidden_sizes",
    "data.features.x={kind: sequence, separator: ''}": "separator is ''; allowed: at least 1 character",
    "data.features.x={max_length: 3}": "recipe.data.features.x.kind is missing",
}


@pytest.mark.parametrize("setting", WRONG)
def test_a_wrong_value_is_told_with_what_is_allowed(setting: str) -> None:
    with pytest.raises(PolytaskError) as raised:
        read_recipe({**yaml.safe_load(BASE), "train": {"steps": 1}}, [setting])
    assert WRONG[setting] in str(raised.value)


def test_train_is_one_stage() -> None:
    base = yaml.safe_load(BASE)
    options = {"rule": "upgrad", "steps": 4, "optimizer": {"kind": "sgd", "lr": 0.1}}
    short = read_recipe({**base, "train": {**options, "seed": 3, "threads": 1}}).recipe
    long = read_recipe({**base, "stages": [options], "run": {"seed": 3, "threads": 1}}).recipe
    assert short == long
    with pytest.raises(PolytaskError, match="it has train or stages, not both"):
        read_recipe({**base, "train": options, "stages": [options]})


def test_settings_change_any_entry() -> None:
    base = {**yaml.safe_load(BASE), "stages": [{"name": "one"}, {"name": "two"}]}
    read = read_recipe(
        base,
        ["stages.1.rule=upgrad", "stages.0.optimizer.lr=1e-2", "data.split={fractions: [.5, .2, .3]}", "run.seed=7"],
    )
    assert [stage.rule.kind for stage in read.recipe.stages] == ["equal", "upgrad"]
    assert read.recipe.stages[0].optimizer.lr == 0.01
    assert read.recipe.data.split is not None
    assert read.recipe.data.split.fractions == (0.5, 0.2, 0.3)
    assert read.recipe.run.seed == 7
    assert base["stages"] == [{"name": "one"}, {"name": "two"}]  # the recipe that was given stays as it was
    inside_a_short_form = changed({"model": {"encoder": "mlp"}}, "model.encoder.dropout", 0.1)
    assert inside_a_short_form == {"model": {"encoder": {"kind": "mlp", "dropout": 0.1}}}
    with pytest.raises(BadValue, match="the place in 'stages' is '5'; allowed: 0 to 1"):
        read_recipe(base, ["stages.5.rule=equal"])
    with pytest.raises(BadValue, match="allowed: path"):
        parsed_settings(["train.steps"])


def test_variations_are_lists_of_values() -> None:
    assert parsed_variations(["train.batch_size=64,256", "model.encoder.hidden_sizes=[8],[8, 8]"]) == {
        "train.batch_size": [64, 256],
        "model.encoder.hidden_sizes": [[8], [8, 8]],
    }
    with pytest.raises(BadValue, match="a variation"):
        parsed_variations(["train.batch_size"])
    with pytest.raises(DataError, match="not valid YAML"):
        parsed_variations(["train.batch_size=[1"])


def test_numbers_are_read_as_in_yaml_1_2(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(BASE + "train: {optimizer: {lr: 3e-4}}\n")
    assert read_recipe(tmp_path / "r.yaml").recipe.stages[0].optimizer.lr == 0.0003


def test_the_shipped_json_schema_is_the_models() -> None:
    assert shipped_schema() == recipe_schema(), "write it anew: python -m polytask.recipes.json_schema"


def test_the_json_schema_knows_the_recipes_keys_and_names() -> None:
    schema = shipped_schema()
    assert set(schema["properties"]) == {*Recipe.model_fields, "train"}
    definitions = schema["$defs"]
    assert {"upgrad", "pcgrad"} <= set(definitions["RuleChoice"]["properties"]["kind"]["enum"])
    assert "temperature" in definitions["RuleChoice"]["properties"]
    encoders = definitions["ModelSpec"]["properties"]["encoder"]["anyOf"]
    assert encoders[0] == {"enum": ENCODERS.names()}
    assert definitions["Task"]["additionalProperties"] is False
    assert "name" not in definitions["Task"]["properties"]


def test_a_resolved_recipe_keeps_what_its_sources_take_from_the_defaults() -> None:
    values = yaml.safe_load(
        "{version: 1, tasks: {a: {kind: binary, source: x}}, data: {split: fold, rows: {train: 5}, seed: 3, "
        "features: {t: categorical}, sources: {x: {table: x.csv}, y: {table: y.csv, seed: 4}}}}"
    )
    recipe = read_recipe(values).recipe
    again = read_recipe(recipe.resolved()).recipe
    assert again.data.named_sources() == recipe.data.named_sources()
    assert again.data.named_sources()["x"].split is not None
    assert again.resolved() == recipe.resolved()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "recipe.yaml: the recipe is empty"),
        (b"version: 1\n\ttasks: 3\n", "recipe.yaml, line 2: not valid YAML (a tab; indent with spaces)"),
        (b"version: 1\n# caf\xe9\n", "recipe.yaml, line 2: no text in UTF-8"),
    ],
)
def test_a_file_that_is_no_recipe(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "recipe.yaml").write_bytes(content)
    with pytest.raises(DataError) as raised:
        read_recipe(tmp_path / "recipe.yaml")
    assert message in str(raised.value)
    with pytest.raises(DataError, match="is a folder"):
        read_recipe(tmp_path)
