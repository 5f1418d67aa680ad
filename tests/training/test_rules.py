"""The trainer's side of rules that want more than a step's losses: batches, a target, memory."""

import pytest
import torch
from tests.training.distributed import images
from tests.training.runs import assert_resumes, events, job, table, train

from polytask.checkpoints import read_checkpoint, resolve
from polytask.core.errors import BadValue, Inconsistent
from polytask.tasks.examples import Batch
from polytask.training.job import stage_balancer
from polytask.training.losses import parts

RULES = ["modo", "sdmgrad", "moco", "db_mtl", "excess_mtl", "metabalance", "agr_sum", "agr_rand"]


@pytest.mark.parametrize("rule", RULES)
def test_a_run_ends(tmp_path, rule):
    results = train(tmp_path / "run", train__rule=rule)
    assert results["steps"] == 6
    for step in events(tmp_path / "run", "step"):
        assert set(step["losses"]) == {"click", "buy", "topic", "price"}
        assert set(step["weights"]) == (set() if rule.startswith("agr") else set(step["losses"]))


@pytest.mark.parametrize("rule", ["modo", "moco", {"kind": "excess_mtl", "groups": "layer"}])
def test_a_resumed_run_equals_a_straight_one(tmp_path, rule):
    assert_resumes(tmp_path, 3, train__rule=rule)


def test_independent_batches_are_the_step_s_rows_each_once():
    rows = torch.arange(8)
    batch = Batch({"x": rows[:, None].float()}, {"a": rows}, {"a": rows > 2}, rows, "data")
    found = parts([batch], 3)
    assert [part[0].rows.tolist() for part in found] == [[0, 3, 6], [1, 4, 7], [2, 5]]
    assert [part[0].present["a"].tolist() for part in found] == [
        [False, True, True],
        [False, True, True],
        [False, True],
    ]
    assert parts([batch], 1)[0][0] is batch


def test_too_few_rows_for_independent_batches():
    with pytest.raises(BadValue, match="stage 'train': batch_size is 2; allowed: 3 or more: rule 'modo' splits"):
        job(train__rule="modo", train__batch_size=2)


def test_the_task_with_the_role_target_is_metabalance_s():
    roles = {task: {"kind": kind, "role": "auxiliary"} for task, kind in (("click", "binary"), ("topic", "multiclass"))}
    tasks = {"click": roles["click"], "buy": "binary", "topic": roles["topic"]}
    assert target_of(tasks=tasks, train__rule="metabalance") == "buy"
    assert target_of(tasks=tasks, train__rule={"kind": "metabalance", "target": "topic"}) == "topic"
    assert target_of(train__rule="metabalance") is None  # all are targets: the first


def target_of(**settings):
    made = job(**settings)
    return stage_balancer(made.stages[0], made.targets_of(made.stages[0]), 0).parameters["target"]


def test_a_task_without_labels_in_a_step_waits(tmp_path):
    """In some steps of four rows a task has no label in one of the three batches."""
    results = train(tmp_path / "run", data=table(60), train__rule="modo", train__batch_size=4)
    present = {frozenset(step["losses"]) for step in events(tmp_path / "run", "step")}
    assert results["steps"] == 18
    assert len(present) > 1


def test_a_term_over_a_whole_batch_and_rules_that_split_it(tmp_path):
    with pytest.raises(Inconsistent, match="'rep_mtl': its term compares the rows of a whole batch, of which a step"):
        train(tmp_path / "run", train__rule="modo", train__attachments=["rep_mtl"])


def test_a_procedure_around_a_rule_of_several_batches():
    for inner in ("modo", "moco"):
        with pytest.raises(BadValue, match="allowed: a rule that reads one batch and remembers no gradients"):
            job(train__rule={"kind": "sharpness_aware", "inner": inner})


@pytest.mark.parametrize("rule", ["upgrad", "uncertainty"])
def test_a_step_in_parts_is_the_step_of_the_whole_batch(tmp_path, rule):
    whole = train(tmp_path / "whole", train__rule=rule)
    parts = train(tmp_path / "parts", train__rule=rule, train__accumulate=3)
    assert parts["steps"] == whole["steps"]
    for a, b in zip(events(tmp_path / "parts", "step"), events(tmp_path / "whole", "step"), strict=True):
        assert a["losses"] == pytest.approx(b["losses"], rel=1e-4)
        assert a["weights"] == pytest.approx(b["weights"], rel=1e-3)


DROPOUT = {"kind": "conv", "channels": [3], "width": 6, "normalization": "batch", "dropout": 0.3}


@pytest.mark.parametrize("rule", ["upgrad", "uncertainty"])
def test_parts_computed_again_are_the_parts_kept(tmp_path, rule):
    """The same dropout in each pass of a part, whose running statistics count once."""
    settings = {
        "tasks": {"left": "binary", "whole": "regression"},
        "data__features": {"image": {"kind": "image"}},
        "model__encoder": DROPOUT,
        "train__rule": rule,
        "train__optimizer": {"kind": "sgd", "lr": 0.1},
    }
    for gram in ("kept", "recomputed"):
        train(tmp_path / gram, data=images(), train__accumulate={"parts": 3, "gram": gram}, **settings)
    kept, again = (read_checkpoint(resolve(tmp_path / gram)).tensors() for gram in ("kept", "recomputed"))
    for name, tensor in kept.items():
        torch.testing.assert_close(again[name], tensor, rtol=1e-3, atol=1e-5)
    steps = zip(events(tmp_path / "kept", "step"), events(tmp_path / "recomputed", "step"), strict=True)
    for a, b in steps:
        assert a["losses"] == pytest.approx(b["losses"], rel=1e-3)
        assert a["weights"] == pytest.approx(b["weights"], rel=1e-2)


def test_the_mean_of_the_parts_gram_matrices_trains(tmp_path):
    results = train(tmp_path / "run", train__rule="upgrad", train__accumulate={"parts": 3, "gram": "micro_mean"})
    assert results["steps"] == len(events(tmp_path / "run", "step"))
    assert all("cosines" in step for step in events(tmp_path / "run", "step"))


def test_parts_that_cannot_be():
    with pytest.raises(Inconsistent, match="gram 'recomputed' is of a step in several parts"):
        job(train__rule="upgrad", train__accumulate={"parts": 1, "gram": "recomputed"})
    with pytest.raises(BadValue, match="gram is 'recomputed'; allowed: kept: the rule reads more"):
        job(train__rule="graddrop", train__accumulate={"parts": 2, "gram": "recomputed"})
    with pytest.raises(Inconsistent, match="'modo' reads independent batches, and takes no batch in parts"):
        job(train__rule="modo", train__accumulate=2)
    with pytest.raises(BadValue, match="stage 'train': accumulate is 9; allowed: at most batch_size, 8"):
        job(train__batch_size=8, train__accumulate=9)
