"""A run that was killed at any moment ends as if it had not been."""

import json
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
import torch
from tests.checkpoints.test_directory import largest_file
from tests.training.runs import events, outcome, recipe, table, train, train_until

import polytask
from polytask.core.errors import CheckpointError
from polytask.core.noise import Noise

DROPOUT = {"kind": "tabular", "embedding": 2, "hidden_sizes": [8], "dropout": 0.3}
TABLE = {"table": "t.parquet", "split": {"fractions": [0.6, 0.2, 0.2], "seed": 0}}
STREAMED = {**TABLE, "stream": {"buffer_rows": 40, "block_rows": 16}}
SCHEDULED = {"kind": "cosine", "warmup": 0.2}
STAGES = [
    {"name": "warm", "trainable": ["heads"], "tasks": ["click", "topic"], "steps": 3, "batch_size": 32},
    {
        "name": "joint",
        "rule": {"kind": "dwa", "temperature": 1.0},
        "regularizer": {"kind": "fisher", "strength": 1.0, "rows": 8},
        "epochs": 3,
        "batch_size": 32,
    },
]
RECIPES = {
    "dropout and learnt weights": {"train__rule": "uncertainty", "model__encoder": DROPOUT, "data": TABLE},
    "two stages": {"stages": STAGES, "run__checkpoint_every": 2, "model__encoder": DROPOUT, "data": TABLE},
    "streamed, random rule": {"train__rule": "pcgrad", "train__schedule": SCHEDULED, "data": STREAMED},
    "momentum": {"train__optimizer": {"kind": "sgd", "momentum": 0.9}, "train__checkpoint_every": 1, "data": TABLE},
}


def same_after_kills(folder: Path, name: str, kills: list[list[dict]]) -> list[int]:
    """Trains a recipe with kills at each of these lists of moments, and without; the outcome must be the same.

    Returns how many kills came in time, for each list.
    """
    pl.DataFrame(table()).write_parquet(folder / "t.parquet", row_group_size=32)
    values = recipe(**RECIPES[name])
    config = [
        {"recipe": values, "data_dir": str(folder), "out": str(folder / f"killed-{number}"), "kills": moments}
        for number, moments in enumerate(kills)
    ]
    (folder / "config.json").write_text(json.dumps(config))
    command = [sys.executable, Path(__file__).with_name("killed.py"), folder / "config.json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    polytask.train(values, out=folder / "straight", data_dir=folder)
    expected = outcome(folder / "straight")
    for number, moments in enumerate(kills):
        assert outcome(folder / f"killed-{number}") == expected, moments
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", RECIPES)
def test_killed_at_random_moments(tmp_path, name):
    noise = Noise(0, "kills", name)
    calls = [{"call": int(call)} for call in 2 + noise.integers(3, 40)]
    (died,) = same_after_kills(tmp_path, name, [[*calls, {"seconds": float(noise.uniform(1)[0] * 0.3)}]])
    assert died >= 3  # the one by the clock may come too late


@pytest.mark.slow
@pytest.mark.parametrize("name, calls", [("streamed, random rule", (1, 100, 4)), ("two stages", (2, 300, 12))])
def test_killed_at_every_write(tmp_path, name, calls):
    """At calls that change the disk from the run's beginning to beyond its end, one call a run."""
    died = same_after_kills(tmp_path, name, [[{"call": call}] for call in range(*calls)])
    assert sum(died) > 10
    assert died == sorted(died, reverse=True)
    assert died[-1] == 0, "the last of them is beyond the end of the run"


def test_threads_are_those_of_the_first_part(tmp_path):
    values = {"train__threads": None, "train__checkpoint_every": 1}
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        train_until(4, tmp_path / "run", **values)
        torch.set_num_threads(1)
        seen = []
        train(tmp_path / "run", resume=True, listeners=[lambda event: seen.append(torch.get_num_threads())], **values)
        assert set(seen) == {2}
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_a_run_that_is_done_is_left_as_it_is(tmp_path):
    first = train(tmp_path / "run")
    before = {path: path.stat().st_mtime_ns for path in sorted((tmp_path / "run").rglob("*"))}
    assert train(tmp_path / "run", resume=True) == json.loads(json.dumps(first))
    assert {path: path.stat().st_mtime_ns for path in sorted((tmp_path / "run").rglob("*"))} == before


def test_resuming_nothing_starts(tmp_path):
    train(tmp_path / "run", resume=True)
    train(tmp_path / "straight")
    assert outcome(tmp_path / "run") == outcome(tmp_path / "straight")


def test_only_the_same_recipe_resumes(tmp_path):
    train(tmp_path / "run")
    kept = outcome(tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"stages\.0\.optimizer\.lr is 0\.01 there and 0\.02 here"):
        train(tmp_path / "run", resume=True, train__optimizer__lr=0.02)
    with pytest.raises(CheckpointError, match=r"tasks\.price\.loss is 'mean_squared_error' there and 'l1' here"):
        train(tmp_path / "run", resume=True, tasks__price={"kind": "regression", "loss": "l1"})
    assert outcome(tmp_path / "run") == kept


def test_only_the_same_data_resume(tmp_path):
    train_until(5, tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"the training data have changed since: sources\.data"):
        train(tmp_path / "run", resume=True, data=table(seed=1))


def test_other_directories_are_refused_and_kept(tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(CheckpointError, match=r"not empty \(thesis\.txt is there\); name a new directory"):
        train(tmp_path)
    with pytest.raises(CheckpointError, match=r"not a run to continue \(thesis\.txt is there"):
        train(tmp_path, resume=True)
    with pytest.raises(CheckpointError, match="is a file; name a directory"):
        train(tmp_path / "thesis.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_recipe_that_cannot_start_leaves_nothing(tmp_path):
    for settings in (
        {"model__encoder": {"kind": "conv"}},
        {"stages": [STAGES[0], {"trainable": ["haeds"]}]},
        {"train__rule": "pcgrd"},
    ):
        with pytest.raises(polytask.PolytaskError):
            train(tmp_path / "run", **settings)
        assert not (tmp_path / "run").exists()


def test_a_full_disk_keeps_the_last_good_checkpoint(tmp_path):
    settings = {"train__checkpoint_every": 1, "train__epochs": 2}
    train_until(3, tmp_path / "run", **settings)
    kept = (tmp_path / "run" / "last").resolve()
    with (
        largest_file(3000),
        pytest.raises(CheckpointError, match=r"step-3: could not be written \(File too large\); what was there before"),
    ):
        train(tmp_path / "run", resume=True, **settings)
    assert (tmp_path / "run" / "last").resolve() == kept
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir() if path.name[0] == "."] == []
    train(tmp_path / "run", resume=True, **settings)
    train(tmp_path / "straight", **settings)
    assert outcome(tmp_path / "run") == outcome(tmp_path / "straight")


def test_a_full_disk_under_the_event_stream_is_one_clear_error(tmp_path):
    train(tmp_path / "other", train__epochs=1)
    recipe = (tmp_path / "other" / "recipe.yaml").stat().st_size  # which is written first, whole
    with largest_file(recipe + 500), pytest.raises(CheckpointError, match=r"events\.jsonl: could not be written"):
        train(tmp_path / "run", train__epochs=40, train__checkpoint_every="end", train__evaluate_every=1000)


@pytest.mark.parametrize("damage", ["cut", "missing"])
def test_a_damaged_checkpoint_is_one_clear_error(tmp_path, damage):
    train_until(5, tmp_path / "run")
    state = (tmp_path / "run" / "last").resolve() / "state.safetensors"
    content = state.read_bytes()
    state.unlink()
    if damage == "cut":
        state.write_bytes(content[:100])
    with pytest.raises(CheckpointError, match=f"state.safetensors.*{damage}"):
        train(tmp_path / "run", resume=True)


def test_the_last_step_is_kept_whatever_the_period(tmp_path):
    train(tmp_path / "run", train__checkpoint_every=100)
    last = max(event["step"] for event in events(tmp_path / "run"))
    assert (tmp_path / "run" / "last").resolve().name == f"step-{last}"


def test_a_run_that_keeps_only_the_best(tmp_path):
    results = train(tmp_path / "run", train__checkpoint_every="end", train__epochs=3)
    run = tmp_path / "run"
    assert [path.name for path in (run / "checkpoints").iterdir()] == [f"step-{results['best_step']}"]
    assert not (run / "last").exists()
    card = json.loads((run / "best" / "card.json").read_text())
    assert card["step"] == results["best_step"]
    assert card["metrics"]["test"]["click"] == results["test"]["click"]["auroc"]
    assert not (run / "best" / "state.safetensors").exists()
    assert train(run, resume=True, train__checkpoint_every="end", train__epochs=3) == json.loads(json.dumps(results))


def test_keeping_more_checkpoints(tmp_path):
    train(tmp_path / "run", train__checkpoint_every=1, train__keep=3, train__epochs=2)
    steps = sorted(int(path.name[5:]) for path in (tmp_path / "run" / "checkpoints").iterdir())
    best = int((tmp_path / "run" / "best").resolve().name[5:])
    assert steps == sorted({best, *range(max(steps) - 2, max(steps) + 1)})
