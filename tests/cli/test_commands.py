"""Each command does what its help says, through the command line's entry point."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest
import yaml

from cli.conftest import Polytask
from cli.small_recipe import recipe, table, write_recipe
from polytask.core.names import METHODS
from polytask.sharing import ATTACHMENTS

COMMANDS = ("demo", "init", "train", "compare", "merge", "predict", "evaluate", "rules", "report", "recipes")
TWO_STEPS = ("--set", "train.steps=2", "--set", "train.epochs=null")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(polytask: Polytask, command: str) -> None:
    shown = polytask(command, "--help", COLUMNS="80")
    assert shown.status == 0
    assert f"  polytask {command}" in shown.stdout
    assert max(len(line) for line in shown.stdout.splitlines()) <= 90


def test_help_lists_every_command_and_version_is_the_packages(polytask: Polytask) -> None:
    import polytask as package

    shown = polytask("--help").stdout
    assert [command for command in COMMANDS if f"\n  {command} " not in shown] == []
    assert polytask("--version").stdout == f"polytask {package.__version__}\n"


def test_both_entry_points_start(tmp_path: Path) -> None:
    script = Path(sys.executable).parent / "polytask"
    for start in ([str(script)], [sys.executable, "-m", "polytask"]):
        ended = subprocess.run([*start, "rules", "equl"], capture_output=True, text=True, cwd=tmp_path)
        assert ended.returncode == 2
        assert ended.stderr.startswith("error: no rule 'equl' (did you mean 'equal'?); allowed: ")
        assert ended.stderr.count("\n") == 1


def test_from_a_table_to_predictions(polytask: Polytask, folder: Path) -> None:
    """init drafts a recipe that trains as it is; predict and evaluate need the directory and raw rows only."""
    table().drop("split").rename({"price": "target_price", "sold": "target_sold"}).write_csv(folder / "shop.csv")
    drafted = polytask("init", "--data", "shop.csv", "--out", "shop.yaml")
    assert drafted.status == 0
    assert "target_price (regression)" in drafted.stdout
    text = (folder / "shop.yaml").read_text()
    assert "# check: " in text
    assert list(yaml.safe_load(text)["tasks"]) == ["target_sold", "target_price"]
    trained = polytask("train", "shop.yaml", "--out", "run", *TWO_STEPS)
    assert trained.status == 0, trained.stderr
    assert "target_price" in trained.stdout
    assert "step 2" in trained.stderr  # plain lines, as stderr is no terminal

    new = table().drop("split", "price", "sold").reverse()
    new.write_parquet(folder / "new.parquet")
    assert polytask("predict", "run", "--data", "new.parquet", "--out", "p.csv").status == 0
    assert polytask("predict", "run", "--data", "shop.csv", "--out", "p.parquet", "--tasks", "target_price").status == 0
    all_tasks, one = pl.read_csv(folder / "p.csv"), pl.read_parquet(folder / "p.parquet")
    assert all_tasks.columns == ["target_sold", "target_price"]
    assert one.columns == ["target_price"]
    assert one["target_price"].to_list() == pytest.approx(all_tasks["target_price"].reverse().to_list())
    scored = polytask("evaluate", "run", "--data", "shop.csv", "--json")
    metrics = json.loads(scored.stdout)
    assert metrics["rows"] == 90
    assert 0 <= metrics["tasks"]["target_sold"]["auroc"] <= 1


def test_evaluate_says_which_rows_it_scores(polytask: Polytask, folder: Path) -> None:
    results = json.loads(polytask("train", "recipe.yaml", "--out", "run", "--json").stdout)
    everything = polytask("evaluate", "run", "--data", "x.csv")
    assert "90 rows of x.csv: all rows scored, training rows among them (column 'split')" in everything.stdout
    test = json.loads(polytask("evaluate", "run", "--data", "x.csv", "--split", "test", "--json").stdout)
    assert test["rows"] == 15
    for task, metrics in results["test"].items():
        assert test["tasks"][task] == pytest.approx(metrics), task


def test_train_takes_settings_and_resumes(polytask: Polytask, folder: Path) -> None:
    changed = polytask("train", "recipe.yaml", "--out", "run", "--json", "--set", "train.rule=upgrad")
    assert json.loads(changed.stdout)["rule"] == "upgrad"
    assert yaml.safe_load((folder / "run/recipe.yaml").read_text())["stages"][0]["rule"]["kind"] == "upgrad"
    again = polytask("train", "recipe.yaml", "--out", "run", "--json", "--resume", "--set", "train.rule=upgrad")
    assert json.loads(again.stdout)["test"] == json.loads(changed.stdout)["test"]


def test_compare_prints_the_table_and_goes_on_where_it_stopped(polytask: Polytask, folder: Path) -> None:
    arguments = ("compare", "recipe.yaml", "--out", "study", "--seeds", "2", "--learning-rates", "1")
    first = polytask(*arguments, "--rules", "equal,upgrad")
    assert first.status == 0, first.stderr
    for words in ("single", "equal", "upgrad", "delta-m", "study/report.html", "study/table.csv"):
        assert words in first.stdout
    assert (folder / "study/report.html").stat().st_size > 100_000
    again = polytask(*arguments, "--rules", "equal,upgrad", "--vary", "train.batch_size=8,16")
    assert "6 runs were finished before and not trained again" in again.stdout
    rows = json.loads((folder / "study/results.json").read_text())["rows"]
    assert [row["name"] for row in rows][:3] == ["single", "equal, batch_size=8", "equal, batch_size=16"]


def test_report_of_runs(polytask: Polytask, folder: Path) -> None:
    polytask("train", "recipe.yaml", "--out", "a")
    written = polytask("report", "a", "--out", "pages/report.html")
    assert written.stdout == "pages/report.html\n"
    assert (folder / "pages/report.html").read_text().startswith("<!DOCTYPE html>")


def test_rules(polytask: Polytask) -> None:
    listed = polytask("rules").stdout
    shown = json.loads(polytask("rules", "--json").stdout)
    assert [about["name"] for about in shown if about["name"] not in listed] == []
    one = polytask("rules", "dwa", COLUMNS="80").stdout
    for words in ("arXiv:1803.10704", "temperature: a number in (0, inf)", "balancer.after_epoch()", "permutation"):
        assert words in one
    assert max(len(line) for line in one.splitlines()) <= 80
    attached = polytask("rules", "rotograd", COLUMNS="80").stdout
    for words in ("arXiv:2103.02631", "learning_rate: default 0.0005", "attachment.backward(losses, representation)"):
        assert words in attached
    assert json.loads(polytask("rules", "rep_mtl", "--json").stdout)["form"] == "attachment"
    assert [about["name"] for about in shown if about["form"] == "attachment"] == ATTACHMENTS.names()
    assert [about["name"] for about in shown if about["form"] == "merge method"] == list(METHODS)
    assert json.loads(polytask("rules", "ties", "--json").stdout)["steps"] == ["trim", "elect"]
    assert "polytask merge --rule ties --base BASE" in polytask("rules", "ties").stdout
    assert "transforms: [trim]" in polytask("rules", "trim").stdout
    assert "clip: true or false; default True" in polytask("rules", "model_stock").stdout
    assert "no rule 'tise' (did you mean 'ties'?)" in polytask("rules", "tise").error


def test_recipes(polytask: Polytask, folder: Path) -> None:
    assert "multidigits" in polytask("recipes").stdout
    assert polytask("recipes", "multidigits").stdout.startswith("# Two handwritten digits")
    polytask("recipes", "multidigits", "--out", "digits.yaml")
    assert yaml.safe_load((folder / "digits.yaml").read_text())["version"] == 1
    checked = polytask("recipes", "multidigits", "--check", "--out", "checked")
    assert checked.stdout.startswith("multidigits: 2 steps, 3 tasks, score ")
    assert (folder / "checked/multidigits/results.json").is_file()


MINE = """
from torch import full
from polytask.core.rules import rule

@rule("mine", source="this test", needs=("gram",), scale="sum", claims=("permutation",))
def mine(gram):
    return full((len(gram),), 0.5, dtype=gram.dtype)
"""


def test_a_loaded_file_adds_a_rule(polytask: Polytask, folder: Path) -> None:
    (folder / "mine.py").write_text(MINE)
    assert "no rule 'mine'" in polytask("train", "recipe.yaml", "--out", "a", "--set", "train.rule=mine").error
    trained = polytask("train", "recipe.yaml", "--out", "a", "--set", "train.rule=mine", "--load", "mine.py", "--json")
    assert json.loads(trained.stdout)["rule"] == "mine"
    assert "needs gram; this test" in polytask("rules", "--load", "mine.py").stdout


def test_an_installed_package_adds_a_rule(polytask: Polytask, folder: Path) -> None:
    """An entry point of the group `polytask.rules` is found at the first name that is not shipped."""
    (folder / "mine.py").write_text(MINE)
    about = folder / "mine-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[polytask.rules]\nmine = mine\n")
    start = [sys.executable, "-m", "polytask", "rules", "mine"]
    ended = subprocess.run(start, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(folder)})
    assert "this test" in ended.stdout, ended.stderr
    (folder / "mine.py").write_text("raise RuntimeError('broken')")
    ended = subprocess.run(start, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(folder)})
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: entry point 'mine' of mine: RuntimeError: broken")


def test_data_is_looked_for_in_the_data_folder(polytask: Polytask, folder: Path) -> None:
    (folder / "data").mkdir()
    (folder / "x.csv").rename(folder / "data/x.csv")
    assert "y.csv" not in polytask("train", "recipe.yaml", "--out", "a").error
    assert polytask("train", "recipe.yaml", "--out", "a", "--data-dir", "data").status == 0
    assert polytask("train", "recipe.yaml", "--out", "b", POLYTASK_DATA="data").status == 0


def test_an_interrupted_run_says_how_to_go_on(folder: Path) -> None:
    long = {**recipe()["train"], "steps": 10_000_000, "evaluate_every": 10}
    write_recipe(folder / "long.yaml", train=long)
    start = [sys.executable, "-m", "polytask", "train", "long.yaml", "--out", "run"]
    with subprocess.Popen(start, cwd=folder, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        while not (folder / "run/last").exists() and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        lines = process.stderr.read().splitlines()
    assert process.returncode == 130
    assert lines[-1].startswith("interrupted: continue with the same command and --resume")
    assert (folder / "run/last/card.json").is_file()


def test_a_closed_pipe_is_no_error(folder: Path) -> None:
    start = [sys.executable, "-m", "polytask", "rules", "--json"]
    with subprocess.Popen(start, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""


def test_paths_of_images_start_from_their_tables_folder(polytask: Polytask, folder: Path) -> None:
    from PIL import Image

    for name in ("old", "new"):
        (folder / name / "pictures").mkdir(parents=True)
        for i in range(24):
            Image.new("L", (8, 8), 9 * i).save(folder / name / "pictures" / f"{i}.png")
        for prefix, file in (("pictures/", "index.csv"), ("", "bare.csv")):
            rows = "".join(f"{prefix}{i}.png,{i % 2}\n" for i in range(24))
            (folder / name / file).write_text("path,bright\n" + rows)
    data = {"images": "old/index.csv", "features": {"path": "image"}, "split": {"fractions": [0.5, 0.25, 0.25]}}
    model = {"encoder": {"kind": "conv", "channels": [4]}}
    write_recipe(folder / "images.yaml", data=data, tasks={"bright": "binary"}, model=model)
    assert polytask("train", "images.yaml", "--out", "run").status == 0
    assert polytask("predict", "run", "--data", "new/index.csv", "--out", "p.csv").status == 0
    assert polytask("evaluate", "run", "--data", "new/bare.csv", "--root", "new/pictures").status == 0
    error = polytask("predict", "run", "--data", "new/bare.csv", "--out", "p.csv").error
    assert "row 0: column 'path': no such image file 'new/0.png'" in error
    assert "--root" in error


ENCODER = """
from typing import Literal

import polars
import torch

from polytask.sharing import ENCODERS, EncoderOptions
from polytask.tasks.names import SOURCES


class Tiny(torch.nn.Module):
    class Options(EncoderOptions):
        kind: Literal["tiny"] = "tiny"
        width: int = 4

    def __init__(self, options, schema):
        super().__init__()
        self.width = options.width
        self.layer = torch.nn.Linear(schema.shapes["numeric"][0], options.width)

    def forward(self, inputs):
        return self.layer(inputs["numeric"]).tanh()


def waves(rows, seed):
    sizes = {"train": 40, "valid": 10, "test": 10} | rows
    splits = [split for split, size in sizes.items() for _ in range(size)]
    return polars.DataFrame({"x": [i / 9 + seed for i in range(len(splits))], "split": splits}).with_columns(
        high=(polars.col("x").sin() > 0).cast(int)
    )


ENCODERS.add("tiny", Tiny)
SOURCES.add("waves", waves)
"""


def test_a_loaded_file_adds_an_encoder_and_a_source(polytask: Polytask, folder: Path) -> None:
    (folder / "mine.py").write_text(ENCODER)
    data = {"builtin": "waves", "rows": {"train": 60}, "seed": 2}
    model = {"encoder": {"kind": "tiny", "width": 6}}
    write_recipe(folder / "waves.yaml", data=data, tasks={"high": "binary"}, model=model)
    error = polytask("train", "waves.yaml", "--out", "run").error
    assert "no builtin source 'waves'; allowed: multidigits" in error
    trained = polytask("train", "waves.yaml", "--out", "run", "--load", "mine.py", "--json")
    assert json.loads(trained.stdout)["parameters"]["total"] == 2 * 6 + 7
    wrong = polytask("train", "waves.yaml", "--out", "b", "--load", "mine.py", "--set", "model.encoder.widht=3")
    assert "model.encoder: no key 'widht' (did you mean 'width'?)" in wrong.error
    predict = ("predict", "run", "--data", "waves.csv", "--out", "p.csv")
    (folder / "waves.csv").write_text("x\n1.5\n2.5\n")
    assert polytask(*predict, "--load", "mine.py").status == 0
    start = [sys.executable, "-m", "polytask", *predict]  # a process that has not loaded the file
    ended = subprocess.run(start, cwd=folder, capture_output=True, text=True)
    assert ended.returncode == 2
    assert "no encoder 'tiny'" in ended.stderr
    assert "--load FILE.py imports the file that adds it" in ended.stderr
