"""One run: determinism, torch's settings, absent labels, loss of finiteness, events, results."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.annotations import numpy_and_torch
from tests.training.runs import events, job, outcome, recipe, table, train, weights

from polytask.core.errors import BadValue, NotFinite
from polytask.testing.contract import generators
from polytask.training.devices import Devices
from polytask.training.spec import RunSpec

DROPOUT = {"kind": "tabular", "embedding": 2, "hidden_sizes": [8], "dropout": 0.3}


def test_the_same_recipe_and_seed_give_the_same_bits(tmp_path):
    for run in ("a", "b"):
        torch.manual_seed(len(run))
        train(tmp_path / run, model__encoder=DROPOUT, train__rule="pcgrad")
    assert outcome(tmp_path / "a") == outcome(tmp_path / "b")
    train(tmp_path / "c", model__encoder=DROPOUT, train__rule="pcgrad", train__seed=1)
    assert weights(tmp_path / "c") != weights(tmp_path / "a")


@pytest.mark.slow
def test_hash_seeds_change_nothing(tmp_path):
    train(tmp_path / "here", model__encoder=DROPOUT)
    script = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[1]); from tests.training.runs import train;"
        f"train(Path(sys.argv[2]), model__encoder={DROPOUT!r})"
    )
    for seed in ("1", "2"):
        subprocess.run(
            [sys.executable, "-c", script, Path(__file__).parents[2], tmp_path / seed],
            env={**os.environ, "PYTHONHASHSEED": seed},
            check=True,
            timeout=200,
        )
        assert outcome(tmp_path / seed) == outcome(tmp_path / "here")


@pytest.fixture
def unusual_settings():
    old = torch.get_num_threads()
    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.set_num_threads(old)
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("unusual_settings")
@pytest.mark.parametrize("fails", [False, True])
def test_the_callers_settings_and_random_state_stay(tmp_path, fails):
    """Python's own generator is watched in test_distribution.py: the checks of annotations here draw from it."""
    states = numpy_and_torch(generators())

    def fail(event):
        if fails and event["event"] == "step":
            raise KeyboardInterrupt

    inside = []
    listeners = [lambda event: inside.append((torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()))]
    try:
        train(tmp_path / "run", model__encoder=DROPOUT, train__deterministic=False, listeners=[*listeners, fail])
    except KeyboardInterrupt:
        assert fails
    assert set(inside) == {(1, False)}
    assert torch.get_num_threads() == 2
    assert torch.are_deterministic_algorithms_enabled()
    assert torch.is_deterministic_algorithms_warn_only_enabled()
    assert torch.utils.deterministic.fill_uninitialized_memory
    assert states == numpy_and_torch(generators())


def test_a_run_leaves_no_queue_of_seeds_for_accelerators(tmp_path):
    """torch.manual_seed remembers each call for devices that are not in use yet: one a step would never end."""
    before = len(torch.cuda._queued_calls)
    train(tmp_path / "run")
    assert len(torch.cuda._queued_calls) == before


def test_half_precision_trains_on_the_cpu_and_stays_there(tmp_path):
    results = train(tmp_path / "half", train__precision="bf16", train__epochs=4)
    whole = train(tmp_path / "whole", train__epochs=4)
    losses = [events(tmp_path / run, "step")[-1]["losses"]["click"] for run in ("half", "whole")]
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)
    assert results["score"] == pytest.approx(whole["score"], abs=0.1)
    assert all(tensor.dtype != torch.bfloat16 for tensor in job().build().parameters())


def test_devices_and_precisions_that_are_not_there(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(BadValue, match=r"run.device is 'cuda'; allowed: a device that this machine has: auto \| cpu"):
        Devices(RunSpec(device="cuda"))
    with pytest.raises(BadValue, match=r"run.precision is 'fp16'; allowed: float32 \| bf16 without a CUDA device"):
        Devices(RunSpec(precision="fp16"))


# --- labels that are not there ----------------------------------------------------------------------------------------


def test_a_task_that_no_batch_of_an_epoch_has(tmp_path):
    rows = table()
    rows["buy"] = np.full(len(rows["click"]), np.nan)
    split = np.array(["train"] * 100 + ["valid"] * 30 + ["test"] * 30)
    rows["buy"][[0, 1]] = [0, 1]  # the only labels; most steps have none
    rows["split"] = split
    results = train(tmp_path / "run", data=rows, data__split="split", train__batch_size=20, train__rule="upgrad")
    assert results["valid"]["buy"]["auroc"] is None
    present = [("buy" in event["losses"]) for event in events(tmp_path / "run", "step")]
    assert 1 <= sum(present) <= 4
    assert events(tmp_path / "run", "evaluate")[0]["undefined"] == ["buy"]


def test_a_batch_without_any_label_changes_nothing(tmp_path):
    rows = {key: values for key, values in table().items() if key not in ("click", "buy", "topic")}
    rows["price"] = np.where(np.arange(160) < 3, np.arange(160.0), np.nan)
    rows["split"] = np.array((["train"] * 2 + ["valid"]) * 53 + ["test"])
    tasks = {"price": "regression"}
    train(tmp_path / "run", data=rows, tasks=tasks, data__split="split", train__batch_size=4, train__epochs=1)
    steps = events(tmp_path / "run", "step")
    assert len(steps) == 27
    assert 1 <= sum(bool(step["losses"]) for step in steps) <= 2
    assert {json.dumps(step["weights"]) for step in steps if not step["losses"]} == {"{}"}


def test_without_a_test_split_there_are_no_test_results(tmp_path):
    results = train(tmp_path / "run", data__split={"fractions": [0.8, 0.2, 0.0], "seed": 0})
    assert results["test"] == {}
    assert list(json.loads((tmp_path / "run" / "best" / "card.json").read_text())["metrics"]) == ["valid"]


# --- NaN --------------------------------------------------------------------------------------------------------------


def test_a_loss_that_turns_nan_names_its_task_its_step_and_its_rows(tmp_path):
    def settings(lr):
        return {"train__optimizer": {"kind": "sgd", "lr": lr}, "train__epochs": 4, "train__checkpoint_every": 1}

    with pytest.raises(NotFinite) as caught:
        train(tmp_path / "run", **settings(1e12))
    saved = json.loads((tmp_path / "run" / "not_finite.json").read_text())
    step = saved["step"]
    assert f"at step {step}" in str(caught.value)
    assert "task '" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert saved["stage"] == "train"
    made = job(**settings(1e12))
    from polytask.training.stage import Stage

    model = made.build()
    names = [name for name, _ in model.named_parameters()]
    rows = {"data": made.data.sources["data"].splits["train"]}
    stage = Stage(made, 0, model, names, rows, {}, Devices(made.run))
    batches = [pieces for epoch in range(4) for pieces in stage.mixture.batches(epoch)]
    assert saved["rows"] == {"data": batches[step - 1][0].rows.tolist()}
    assert step == 1 or (tmp_path / "run" / "last").resolve().name == f"step-{step - 1}"


def test_outputs_that_turn_infinite_at_an_evaluation_name_the_step(tmp_path):
    with pytest.raises(NotFinite, match=r"evaluation after step 1: task '\w+': .*NaN or infinite.* is kept"):
        train(
            tmp_path / "run",
            train__optimizer={"kind": "sgd", "lr": 1e38},
            train__evaluate_every=1,
            tasks__price="regression",
        )


def test_a_run_that_failed_can_be_tried_again(tmp_path):
    settings = {"train__optimizer": {"kind": "sgd", "lr": 1e12}, "train__checkpoint_every": "end"}
    for resume in (False, True):
        with pytest.raises(NotFinite):
            train(tmp_path / "run", resume=resume, **settings)


# --- what is written --------------------------------------------------------------------------------------------------


def test_results_say_what_was_done(tmp_path):
    results = train(tmp_path / "run", train__rule="uncertainty")
    assert results == json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["kind"] == "train"
    assert (results["rule"], results["sharing"], results["seed"], results["steps"]) == ("uncertainty", "hard", 0, 6)
    assert results["parameters"]["total"] == results["parameters"]["shared"] + sum(
        results["parameters"]["private"].values()
    )
    assert results["peak_memory_mb"] > 10
    assert results["seconds"] > 0
    assert {"polytask", "python", "torch", "commit", "hardware", "date"} <= set(results["provenance"])
    assert list(results["test"]) == list(results["valid"]) == list(recipe()["tasks"])


def test_step_events_carry_what_the_rule_saw(tmp_path):
    train(tmp_path / "run", train__rule="upgrad", train__log_every=2)
    steps = events(tmp_path / "run", "step")
    assert [event["step"] for event in steps] == [1, 2, 4, 6]
    assert steps[0]["cosines"]["tasks"] == list(recipe()["tasks"])
    cosines = np.array(steps[0]["cosines"]["values"])
    assert cosines.shape == (4, 4)
    np.testing.assert_allclose(np.diag(cosines), 1, atol=1e-6)
    assert set(steps[0]["weights"]) == set(steps[0]["losses"]) == set(recipe()["tasks"])


def test_the_commit_is_ours_or_none(monkeypatch, tmp_path):
    from polytask.training import provenance

    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    (tmp_path / "provenance.py").write_text("")  # installed inside somebody else's checkout
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "provenance.py"))
    assert provenance.commit.__wrapped__() is None
