"""Bad input ends with status 2 and one line that says what, where, found, allowed and the nearest match."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import polars as pl
import pytest

from cli.conftest import Polytask
from cli.small_recipe import recipe, table, write_recipe

TRAIN = recipe()["train"]
TASKS = recipe()["tasks"]

RECIPES = {
    "an unknown key": ({"trian": {}}, "recipe: no key 'trian' (did you mean 'train'?); allowed: version, "),
    "an unknown key of train": (
        {"train": {**TRAIN, "batchsize": 3}},
        "recipe.train: no key 'batchsize' (did you mean 'batch_size'?); allowed: name, ",
    ),
    "an unknown key of the optimiser": (
        {"train": {**TRAIN, "optimizer": {"kind": "sgd", "learn_rate": 1}}},
        "recipe.train.optimizer: no key 'learn_rate'; allowed: kind, lr, weight_decay, momentum, betas",
    ),
    "an unknown key of an encoder": (
        {"model": {"encoder": {"kind": "tabular", "hiden_sizes": [3]}}},
        "model.encoder: no key 'hiden_sizes' (did you mean 'hidden_sizes'?); allowed: ",
    ),
    "an unknown key of a task": (
        {"tasks": {"sold": {"kind": "binary", "labl": "x"}}},
        "tasks.sold: no key 'labl' (did you mean 'label'?); allowed: kind, label, ",
    ),
    "an unknown rule": (
        {"train": {**TRAIN, "rule": "pcgrd"}},
        "no rule 'pcgrd' (did you mean 'pcgrad'?); allowed: equal, ",
    ),
    "an unknown parameter of a rule": (
        {"train": {**TRAIN, "rule": {"kind": "dwa", "temprature": 1}}},
        "rule 'dwa': no parameter 'temprature' (did you mean 'temperature'?); allowed: temperature",
    ),
    "an unknown encoder": (
        {"model": {"encoder": {"kind": "tabuler"}}},
        "no encoder 'tabuler' (did you mean 'tabular'?); allowed: ",
    ),
    "an unknown label column": (
        {"tasks": {"sold": {"kind": "binary", "label": "sodl"}}},
        "x.csv, tasks.sold: no column 'sodl' (did you mean 'sold'?); allowed: a, b, colour, ",
    ),
    "an unknown split column": (
        {"data": {"table": "x.csv", "split": "spilt"}},
        "x.csv, data.split: no column 'spilt' (did you mean 'split'?); allowed: ",
    ),
    "a missing file": (
        {"data": {"table": "y.csv", "split": "split"}},
        "y.csv: no such file (looked for ",
    ),
    "a missing public file": (
        {"data": {"table": "tox21.parquet", "split": "split"}},
        "it is Tox21 of MoleculeNet",
    ),
    "labels outside of the declared classes": (
        {"tasks": {"size": {"kind": "multiclass", "classes": ["S", "M"]}}},
        "task 'size', column 'size': classes 'L'; allowed: 'S', 'M'",
    ),
    "epochs and steps": (
        {"train": {**TRAIN, "epochs": 1}},
        "recipe.train: a stage has epochs or steps, not both",
    ),
    "a value of another type": ({"train": {**TRAIN, "steps": "many"}}, "recipe.train.steps is 'many'; allowed: "),
    "another version": ({"version": 2}, "recipe.version is 2; allowed: 1"),
}


@pytest.mark.parametrize("what", RECIPES)
def test_a_recipe_is_refused(polytask: Polytask, folder: Path, what: str) -> None:
    changes, expected = RECIPES[what]
    write_recipe(folder / "recipe.yaml", **changes)
    assert expected in polytask("train", "recipe.yaml", "--out", "run").error
    assert not (folder / "run").exists()


def test_an_empty_split(polytask: Polytask, folder: Path) -> None:
    table().filter(pl.col("split") != "valid").write_csv(folder / "x.csv")
    error = polytask("train", "recipe.yaml", "--out", "run").error
    assert "x.csv: the split 'valid' is empty (by column; rows: train 60, valid 0, test 15 of 75)" in error


def test_a_task_with_one_class(polytask: Polytask, folder: Path) -> None:
    """An error by default; degenerate: drop leaves it out, keep trains it and scores it as undefined."""
    table().with_columns(sold=pl.lit(1)).write_csv(folder / "x.csv")
    error = polytask("train", "recipe.yaml", "--out", "run").error
    assert "task 'sold'" in error
    assert "60 of 60 labels are positive; allowed: two or more, or degenerate: drop | keep" in error
    dropped = polytask("train", "recipe.yaml", "--out", "dropped", "--set", "data.degenerate=drop")
    assert dropped.status == 0, dropped.stderr
    assert "the task is dropped (degenerate: drop)" in dropped.stderr
    assert "sold" not in dropped.stdout
    kept = polytask("train", "recipe.yaml", "--out", "kept", "--set", "data.degenerate=keep")
    assert kept.status == 0, kept.stderr
    assert "undefined" in next(line for line in kept.stdout.splitlines() if line.startswith(" sold"))


def test_a_parquet_file_cut_in_half(polytask: Polytask, folder: Path) -> None:
    content = (folder / "x.parquet").read_bytes()
    (folder / "cut.parquet").write_bytes(content[: len(content) // 2])
    polytask("train", "recipe.yaml", "--out", "run")
    train = polytask("train", "recipe.yaml", "--out", "other", "--set", "data.table=cut.parquet")
    for ended in (train, polytask("predict", "run", "--data", "cut.parquet", "--out", "p.csv")):
        assert f"cut.parquet: the parquet file is cut or damaged ({len(content) // 2} bytes" in ended.error
    assert not (folder / "p.csv").exists()


def test_rows_without_a_needed_column(polytask: Polytask, folder: Path) -> None:
    polytask("train", "recipe.yaml", "--out", "run")
    table().rename({"colour": "color"}).write_csv(folder / "new.csv")
    for ended in (
        polytask("predict", "run", "--data", "new.csv", "--out", "p.csv"),
        polytask("evaluate", "run", "--data", "new.csv"),
    ):
        assert ended.error.startswith("new.csv (the model needs it): no column 'colour' (did you mean 'color'?)")
    table().drop("size").write_csv(folder / "new.csv")
    assert "no column 'size'" in polytask("evaluate", "run", "--data", "new.csv").error
    assert polytask("evaluate", "run", "--data", "new.csv", "--tasks", "sold,price").status == 0
    assert (
        "no task 'sodl' (did you mean 'sold'?)"
        in polytask("evaluate", "run", "--data", "new.csv", "--tasks", "sodl").error
    )


def test_a_checkpoint_directory_of_another_recipe(polytask: Polytask, folder: Path) -> None:
    polytask("train", "recipe.yaml", "--out", "run")
    before = files(folder / "run")
    other = polytask("train", "recipe.yaml", "--out", "run", "--resume", "--set", "train.batch_size=8").error
    assert "run: was written by another recipe: stages.0.batch_size is 16 there and 8 here; resume with" in other
    assert "run: not empty" in polytask("train", "recipe.yaml", "--out", "run").error
    assert "run: not empty, and no comparison" in polytask("compare", "recipe.yaml", "--out", "run").error
    assert files(folder / "run") == before


def test_a_loss_that_is_no_number(polytask: Polytask, folder: Path) -> None:
    write_recipe(folder / "recipe.yaml", train={**TRAIN, "steps": 9, "optimizer": {"kind": "sgd", "lr": 1e30}})
    error = polytask("train", "recipe.yaml", "--out", "run").error
    assert "step 2" in error
    assert "task '" in error
    assert "run/not_finite.json" in error
    saved = json.loads((folder / "run/not_finite.json").read_text())
    assert saved["step"] == 2
    assert len(saved["rows"]["data"]) == 16
    training_rows = set(table().with_row_index().filter(pl.col("split") == "train")["index"])
    assert training_rows.issuperset(saved["rows"]["data"])


def test_a_full_disk_while_saving_keeps_the_last_good_checkpoint(polytask: Polytask, folder: Path) -> None:
    """A limit on the size of files stands for the full disk; the test after this one has a real one."""
    arguments = ("train", "recipe.yaml", "--out", "run", "--set", "train.evaluate_every=1", "--set", "train.steps=500")
    ended = polytask(*arguments, "--set", "train.log_every=1", limit=20_000)
    assert "could not be written (" in ended.error
    assert polytask("evaluate", "run", "--data", "x.csv").status == 0
    assert not list((folder / "run").rglob(".unfinished-*"))


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("mount"), reason="mounting a tiny disk needs root")
def test_a_disk_that_is_full(polytask: Polytask, folder: Path) -> None:
    disk = folder / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a tiny disk is not allowed here")
    try:
        arguments = ("train", "recipe.yaml", "--out", "disk/run", "--set", "train.evaluate_every=1")
        ended = polytask(*arguments, "--set", "train.steps=5000", "--set", "train.log_every=1")
        assert "could not be written (" in ended.error
        assert "o space left on device)" in ended.error
        assert polytask("evaluate", "disk/run", "--data", "x.csv").status == 0
    finally:
        subprocess.run(["umount", disk], check=True)


COMMANDS = {
    "a recipe that is not there": (("train", "nope.yaml", "--out", "q"), "nope.yaml: no such recipe file"),
    "a recipe's misspelt name": (
        ("train", "recpie.yaml", "--out", "q"),
        "recpie.yaml: no such recipe file (did you mean 'recipe.yaml'?)",
    ),
    "a plan's misspelt name": (("merge", "brokn.yaml", "--out", "q"), "no such plan (did you mean 'broken.yaml'?)"),
    "a shipped recipe that is not there": (
        ("train", "multidigts", "--out", "q"),
        "no shipped recipe 'multidigts' (did you mean 'multidigits'?)",
    ),
    "a setting without a value": (
        ("train", "recipe.yaml", "--out", "q", "--set", "train.steps"),
        "a setting is 'train.steps'; allowed: path.to.key=value",
    ),
    "a setting of an unknown key": (
        ("train", "recipe.yaml", "--out", "q", "--set", "train.stepps=3"),
        "recipe.train: no key 'stepps' (did you mean 'steps'?)",
    ),
    "a varied key that is not there": (
        ("compare", "recipe.yaml", "--out", "q", "--vary", "model.sharng=hard,mmoe"),
        "no key 'sharng' (did you mean 'sharing'?)",
    ),
    "a rule to compare": (
        ("compare", "recipe.yaml", "--out", "q", "--rules", "equal,upgard"),
        "no rule 'upgard' (did you mean 'upgrad'?)",
    ),
    "an architecture to compare": (
        ("compare", "recipe.yaml", "--out", "q", "--sharing", "mmo"),
        "no sharing architecture 'mmo' (did you mean 'mmoe'?)",
    ),
    "a data folder": (("train", "recipe.yaml", "--out", "q", "--data-dir", "no"), "--data-dir: no is no folder"),
    "a directory to predict with": (
        ("predict", "no", "--data", "x.csv", "--out", "p.csv"),
        "no: no such directory",
    ),
    "a file of predictions": (
        ("predict", "no", "--data", "x.csv", "--out", "p.txt"),
        "--out is 'p.txt'; allowed: a file that ends with .parquet or .csv",
    ),
    "a table to draft from": (("init", "--data", "y.csv", "--out", "y.yaml"), "y.csv: no such file"),
    "a recipe that would be replaced": (
        ("init", "--data", "x.csv", "--out", "recipe.yaml"),
        "recipe.yaml: exists; --force replaces it",
    ),
    "a report of nothing": (("report", "no"), "no: no such directory"),
    "a report of a misspelt folder": (("report", "notse"), "notse: no such directory (did you mean 'notes'?)"),
    "a demo in a folder of somebody's": (("demo", "--out", "."), ".: not empty, and no comparison"),
    "a file to load": (("rules", "--load", "no.py"), "--load no.py: no such file"),
    "a loaded file with a mistake": (
        ("rules", "--load", "broken.py"),
        "--load broken.py, line 2: ZeroDivisionError: division by zero",
    ),
    "YAML with a mistake": (("train", "broken.yaml", "--out", "q"), "broken.yaml, line 3: not valid YAML ("),
    "YAML with a key twice": (
        ("train", "twice.yaml", "--out", "q"),
        "twice.yaml, line 2: not valid YAML (key 'version'",
    ),
}


@pytest.mark.parametrize("what", COMMANDS)
def test_a_command_is_refused(polytask: Polytask, folder: Path, what: str) -> None:
    (folder / "notes").mkdir()
    (folder / "notsee").touch()  # nearer, and no folder
    (folder / "broken.py").write_text("x = 1\nx / 0\n")
    (folder / "broken.yaml").write_text("version: 1\ntasks: {a: [\n")
    (folder / "twice.yaml").write_text("version: 1\nversion: 1\n")
    arguments, expected = COMMANDS[what]
    assert expected in polytask(*arguments).error


def test_usage_errors_have_status_2_and_debug_shows_the_traceback(polytask: Polytask, folder: Path) -> None:
    assert polytask("train").status == 2
    assert polytask("trian").status == 2
    assert "did you mean" in polytask("trian").stderr.lower()
    debugged = polytask("rules", "equl", "--debug")
    assert "Traceback" in debugged.stderr
    assert debugged.status == 1


def files(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
