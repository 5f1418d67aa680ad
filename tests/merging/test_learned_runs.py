"""A learned merge of polytask's own runs, as its users meet it: a plan in, a model out, and again without data."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

import polytask
from cli.small_recipe import recipe, table
from merging.test_merge import polytask_command
from polytask.checkpoints import verify_checkpoint
from polytask.core.errors import BadValue, MissingInput, PolytaskError
from polytask.merging import samples

__all__ = ["polytask_command"]

ENCODER = {"encoder": {"kind": "tabular", "hidden_sizes": [8]}}
TASKS = {"sold": {"kind": "binary"}, "size": {"kind": "multiclass"}}
DROPPED = {"sold": ["size", "price"], "size": ["sold", "price"]}


def trained(folder: Path, out: str, task: str, **changes: Any) -> None:
    """A run of one task on the table's three columns, whichever labels stand beside them."""
    data = {"table": "x.csv", "split": "split", "drop": DROPPED[task]}
    values = {**recipe(data=data, tasks={task: TASKS[task]}), **changes}
    polytask.train(values, out=folder / out, data_dir=folder)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    table().write_csv(folder / "x.csv")
    trained(folder, "base", "sold", model=ENCODER)
    longer = {"steps": 40, "batch_size": 16, "threads": 1, "optimizer": {"kind": "adamw", "lr": 0.02}}
    for task in TASKS:
        trained(folder, task, task, model={**ENCODER, "init_from": str(folder / "base" / "best")}, train=longer)
    return folder


def plan(folder: Path, **changes: Any) -> dict[str, Any]:
    tasks = {task: str(folder / task) for task in TASKS}
    rule = {"kind": "adamerging", "each": "task", "steps": 20, "learning_rate": 0.05}
    return {
        "base": str(folder / "base"),
        "tasks": tasks,
        "rule": rule,
        "data": {"rows": 10, "batch_size": 4},
        **changes,
    }


def test_two_runs_are_merged_by_their_own_unlabelled_rows(runs: Path, tmp_path: Path) -> None:
    found = polytask.merge(plan(runs), out=tmp_path / "out", data_dir=runs)
    learned = found["learned"]
    coefficients = learned["coefficients"]
    assert sorted(coefficients) == ["size", "sold"]
    assert all(value != 0.3 for value in coefficients.values())
    assert learned["objective_last"] < learned["objective_first"]
    about = learned["data"]["sold"]
    assert (about["split"], about["rows"], about["labels"], about["rows_seen"]) == ("valid", 10, False, 10)
    card = verify_checkpoint(tmp_path / "out").card
    assert card["rule"] == "adamerging"
    assert card["learned"]["coefficients"] == coefficients
    model = polytask.load(tmp_path / "out")
    assert model.predict(table().drop("sold", "size", "price", "split")).columns[:2] == ["sold", "size"]


def test_a_merge_reads_the_groups_of_a_ranking(tmp_path: Path) -> None:
    """Its loss is over pairs of rows of one group, as in training."""
    table().write_csv(tmp_path / "x.csv")
    data = {"table": "x.csv", "split": "split", "drop": ["sold", "size"]}
    tasks = {"order": {"kind": "ranking", "label": "price", "group_by": "colour"}}
    for out, start in (("base", None), ("order", str(tmp_path / "base"))):
        values = recipe(data=data, tasks=tasks, model={**ENCODER, "init_from": start})
        polytask.train(values, out=tmp_path / out, data_dir=tmp_path)
    runs = {"base": str(tmp_path / "base"), "tasks": {"order": str(tmp_path / "order")}}
    rule = {"kind": "atlas", "each": "task", "steps": 1, "learning_rate": 1e-9, "start": 1.0}
    merging = {**runs, "rule": rule, "data": {"rows": None, "batch_size": 100}}
    found = polytask.merge(merging, out=tmp_path / "out", data_dir=tmp_path)
    evaluated = [json.loads(line) for line in (tmp_path / "order" / "events.jsonl").read_text().splitlines()]
    at_best = next(event for event in reversed(evaluated) if event["event"] == "evaluate" and event["split"] == "valid")
    assert found["learned"]["objective_first"] == pytest.approx(at_best["losses"]["order"])


def test_the_plan_that_is_written_merges_again_without_data(runs: Path, tmp_path: Path) -> None:
    for each in ("task", "tensor"):
        rule = {"kind": "adamerging", "each": each, "steps": 3}
        first = polytask.merge(plan(runs, rule=rule), out=tmp_path / each, data_dir=runs)
        shutil.copytree(tmp_path / each, tmp_path / f"{each}-moved")
        polytask.merge(tmp_path / f"{each}-moved" / "plan.yaml", out=tmp_path / f"{each}-again")
        one, two = (load_file(tmp_path / name / "model.safetensors") for name in (each, f"{each}-again"))
        assert all(torch.equal(one[name], two[name]) for name in one)
        written = yaml.safe_load((tmp_path / each / "plan.yaml").read_text())
        weights = written["rule"]["parameters"]["weights"]
        assert (written["rule"]["kind"], written["data"]) == ("task_arithmetic", None)
        stated = (
            weights if each == "task" else {t: {e["pattern"]: e["value"] for e in own} for t, own in weights.items()}
        )
        assert stated == first["learned"]["coefficients"]


def test_heads_that_are_learned_go_into_the_output(runs: Path, tmp_path: Path) -> None:
    """Tinted heads are the merged model's, and its plan merges again with them."""
    rule = {"kind": "tint", "each": "task", "steps": 5, "learning_rate": 0.05}
    polytask.merge(plan(runs, rule=rule), out=tmp_path / "out", data_dir=runs)
    polytask.merge(tmp_path / "out" / "plan.yaml", out=tmp_path / "again")
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "again"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    values = load_file(tmp_path / "out" / "values.safetensors")
    assert {name.split(".")[1] for name in values} == {"sold", "size"}
    assert all(torch.equal(one[name], values[name]) for name in values)
    before = load_file(runs / "size" / "best" / "model.safetensors")
    assert any(not torch.equal(before[name], values[name]) for name in values if name in before)
    assert not (tmp_path / "out" / "private").exists()


def test_labels_are_read_where_a_rule_says_so(runs: Path, tmp_path: Path) -> None:
    """And only there: rows whose label columns are gone serve a rule that reads none."""
    rule = {"kind": "atlas", "steps": 3}
    found = polytask.merge(plan(runs, rule=rule), out=tmp_path / "out", data_dir=runs)
    assert found["data"]["sold"]["labels"] is True
    (tmp_path / "bare").mkdir()
    table().drop("sold", "size").write_csv(tmp_path / "bare" / "x.csv")
    polytask.merge(plan(runs), out=tmp_path / "unlabelled", data_dir=tmp_path / "bare")
    with pytest.raises(PolytaskError, match="no column 'sold'"):
        polytask.merge(plan(runs, rule=rule), out=tmp_path / "labelled", data_dir=tmp_path / "bare")


def test_the_same_seed_gives_the_same_bytes_and_another_other_rows(runs: Path, tmp_path: Path) -> None:
    for out, seed in (("a", 0), ("b", 0), ("c", 1)):
        polytask.merge(plan(runs, seed=seed), out=tmp_path / out, data_dir=runs)
    first, second, other = ((tmp_path / out / "model.safetensors").read_bytes() for out in "abc")
    assert first == second
    assert first != other


def test_the_command_says_what_is_read_and_what_was(runs: Path, tmp_path: Path, capsys: Any) -> None:
    from typer.testing import CliRunner

    from polytask.cli import app

    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan(runs)))
    arguments = ["merge", str(tmp_path / "plan.yaml"), "--out", str(tmp_path / "out"), "--data-dir", str(runs)]
    ended = CliRunner().invoke(app, [*arguments, "--dry-run"])
    assert ended.exit_code == 0, ended.output
    assert "sold: 10 rows of data (valid), without labels" in ended.stdout
    assert "merged by adamerging" in ended.stdout
    assert not (tmp_path / "out").exists()
    ended = CliRunner().invoke(app, arguments)
    assert ended.exit_code == 0, ended.output
    assert "sold: 10 rows of data (valid), without labels, 10 of them read" in ended.stdout
    assert json.loads((tmp_path / "out" / "card.json").read_text())["learned"]["rule"] == "adamerging"


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"rule": {"kind": "adamergin"}}, "no merge method 'adamergin' (did you mean 'adamerging'?)"),
        ({"rule": {"kind": "adamerging", "step": 3}}, "no parameter 'step' (did you mean 'steps'?)"),
        ({"rule": {"kind": "adamerging", "steps": 0}}, "steps is 0; allowed: a number in [1, inf)"),
        (
            {"rule": "ties"},
            "allowed: nothing: rule 'ties' reads no data",
        ),
        ({"data": {"split": "test"}}, "plan.data.split is 'test'; allowed: 'train' or 'valid'"),
        ({"data": {"row": 3}}, "plan.data: no key 'row' (did you mean 'rows'?)"),
        ({"transforms": ["trim"]}, "plan.transforms is '1 of them'; allowed: none beside rule 'adamerging'"),
        ({"base": None}, "merges differences to a base: give one, base: DIR"),
    ],
)
def test_bad_input_is_one_line(
    runs: Path, tmp_path: Path, polytask_command: Any, changes: dict[str, Any], message: str
) -> None:
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan(runs, **changes)))
    error = polytask_command(tmp_path, "merge", "plan.yaml", "--out", "out", "--data-dir", str(runs))
    assert message in error
    assert not (tmp_path / "out").exists()


def test_data_that_cannot_be_read_is_an_error(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(PolytaskError, match=r"x\.csv"):
        polytask.merge(plan(runs), out=tmp_path / "out", data_dir=tmp_path / "empty")
    files = {name: str(runs / name / "best" / "model.safetensors") for name in ("base", *TASKS)}
    tasks = {task: files[task] for task in TASKS}
    stray = plan(runs, base=files["base"], tasks=tasks, partial="drop")
    with pytest.raises(MissingInput, match="no run of polytask, so nothing says where its rows are"):
        polytask.merge(stray, out=tmp_path / "out")
    given = samples(torch.nn.Linear(1, 1), {"sold": [torch.ones(1, 1)]})
    with pytest.raises(BadValue, match="nothing beside data that is handed over from Python"):
        polytask.merge(plan(runs), out=tmp_path / "out", samples=given)
    assert not (tmp_path / "out").exists()
