"""Stages: schedules, tasks, trainable parameters, early stopping, clipping, evaluations, mixtures."""

import math

import pytest
import torch
from tests.training.runs import events, job, train

from polytask.checkpoints import read_checkpoint
from polytask.core.errors import BadValue, MissingInput, UnknownName
from polytask.training.optimizers import factor
from polytask.training.snapshot import Progress
from polytask.training.spec import ScheduleSpec
from polytask.training.trainable import beginning

WARM = {"name": "warm", "trainable": ["heads"], "steps": 2, "batch_size": 32}
JOINT = {"name": "joint", "steps": 3, "batch_size": 32}
EACH = {"run__checkpoint_every": 1, "run__keep": 100, "run__log_every": 1}


def tensors(run, step):
    return read_checkpoint(run / "checkpoints" / f"step-{step}").tensors()


@pytest.mark.parametrize(
    "spec, factors",
    [
        ({}, [1, 1, 1, 1]),
        ({"kind": "linear"}, [1, 0.75, 0.5, 0.25]),
        ({"kind": "linear", "floor": 0.5}, [1, 0.875, 0.75, 0.625]),
        ({"kind": "cosine"}, [1, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2]),
        ({"warmup": 0.5}, [0.5, 1, 1, 1]),
        ({"kind": "cosine", "warmup": 0.5, "floor": 0.1}, [0.5, 1, 1, 0.55]),
        ({"kind": "linear", "warmup": 0.75}, [1 / 3, 2 / 3, 1, 1]),
    ],
)
def test_schedules_by_hand(spec, factors):
    assert [factor(ScheduleSpec(**spec), step, 4) for step in range(4)] == pytest.approx(factors)


def test_warmup_is_a_whole_number_of_steps_whatever_the_rounding():
    spec = ScheduleSpec(warmup=0.07)  # 0.07 * 100 is 7.000000000000001
    assert [factor(spec, step, 100) for step in (5, 6, 7)] == [6 / 7, 1, 1]


def test_the_learning_rate_follows_the_schedule(tmp_path):
    train(tmp_path / "run", train__schedule={"kind": "linear", "warmup": 0.5}, train__epochs=2)
    rates = [event["learning_rate"] for event in events(tmp_path / "run", "step")]
    assert rates == pytest.approx([0.01 * each for each in (1 / 3, 2 / 3, 1, 1, 2 / 3, 1 / 3)])


def test_own_is_what_belongs_to_one_task():
    model = job(model__sharing="mmoe").build()
    every = [name for name, _ in model.named_parameters()]
    own = [name for name in every if name.startswith(("heads.", "sharing.gates."))]
    assert beginning(model, every, ["own"], "here") == own
    with_experts = [name for name in every if name in own or name.startswith("sharing.experts.")]
    assert beginning(model, every, ["sharing.experts", "own"], "here") == with_experts


def test_a_stage_trains_what_it_names_and_nothing_else(tmp_path):
    heads_of_two = {**WARM, "tasks": ["click", "topic"]}
    encoder_alone = {"name": "encoder", "trainable": ["sharing"], "steps": 1, "batch_size": 32}
    train(tmp_path / "run", stages=[heads_of_two, encoder_alone, JOINT], **EACH)
    start = {name: value.detach() for name, value in job(stages=[JOINT]).build().state_dict().items()}
    steps = [start, *(tensors(tmp_path / "run", step) for step in (2, 3, 6))]

    def changed(before, after):
        names = [name for name in start if not torch.equal(before[name], after[name])]
        return sorted({".".join(name.split(".")[: 2 if name.startswith("heads") else 1]) for name in names})

    assert changed(steps[0], steps[1]) == ["heads.click", "heads.topic"]
    assert changed(steps[1], steps[2]) == ["sharing"]
    assert changed(steps[2], steps[3]) == ["heads.buy", "heads.click", "heads.price", "heads.topic", "sharing"]
    assert [sorted(event["losses"]) for event in events(tmp_path / "run", "step")][:2] == [["click", "topic"]] * 2


def test_stages_follow_each_other_in_the_event_stream(tmp_path):
    train(tmp_path / "run", stages=[WARM, JOINT], **EACH)
    found = events(tmp_path / "run")
    assert found[0]["stages"] == ["warm", "joint"]
    steps = [(event["stage"], event["step"], event["stage_step"], event["epoch"]) for event in found if "of" in event]
    assert steps == [("warm", 1, 1, 1), ("warm", 2, 2, 1), *(("joint", 2 + i, i, 1) for i in (1, 2, 3))]
    assert [(event["stage"], event["reason"]) for event in found if event["event"] == "stop"] == [
        ("warm", "all steps done"),
        ("joint", "all steps done"),
    ]
    assert all(key in event for event in found for key in ("event", "step", "epoch", "stage"))


def test_epochs_are_counted_from_one(tmp_path):
    train(tmp_path / "run", train__epochs=3)
    assert [event["epoch"] for event in events(tmp_path / "run", "step")] == [1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert [event["epoch"] for event in events(tmp_path / "run", "evaluate")] == [1, 2, 3]


@pytest.mark.parametrize(
    "stages, error, message",
    [
        (
            [{"trainable": ["heads.clik"]}],
            UnknownName,
            r"no beginning of a parameter's name 'heads\.clik'.*heads\.click",
        ),
        ([WARM, {"tasks": ["clik"]}], UnknownName, r"stage 'train': no task 'clik' \(did you mean 'click'"),
        ([{"trainable": ["heads.click"]}], MissingInput, "task 'buy' reaches no parameter that this stage trains"),
        ([{"tasks": []}], BadValue, "tasks"),
        ([{"steps": 2, "epochs": 1}], Exception, "epochs or steps, not both"),
        ([{"optimizer": {"kind": "adam", "momentum": 0.9}}], Exception, "momentum belongs to sgd"),
    ],
)
def test_stages_that_cannot_be_are_refused(tmp_path, stages, error, message):
    with pytest.raises(error, match=message):
        train(tmp_path / "run", stages=stages)


def test_an_encoder_that_is_frozen_whole_cannot_be_trained(tmp_path):
    class Frozen(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(4, 4)
            self.requires_grad_(False)

        def forward(self, inputs):
            return self.linear(inputs["numeric"])

    from tests.training.runs import recipe, table

    from polytask.recipes.reading import read_recipe
    from polytask.recipes.run import make_job
    from polytask.training.loop import fit

    stages = [{"trainable": ["sharing"], "steps": 1}]
    made = make_job(read_recipe(recipe(stages=stages)), data={"data": table()}, encoder=Frozen)
    with pytest.raises(BadValue, match=r"stage 'train': trainable is \['sharing'\]; allowed: .* not all frozen"):
        fit(made, tmp_path / "run")


# --- early stopping and what is best ----------------------------------------------------------------------------------


def test_progress_by_hand():
    progress = Progress()
    seen = []
    for step, score in enumerate([0.1, 0.3, 0.35, None, 0.2, 0.5], start=1):
        progress.step = step
        seen.append((progress.see(score, {}, least_gain=0.1), progress.since_best))
    # 0.35 is the best model, but no gain of more than 0.1 over 0.3
    assert seen == [(True, 0), (True, 0), (True, 1), (False, 2), (False, 3), (True, 0)]
    assert (progress.best_score, progress.best_step, progress.stage_best) == (0.5, 6, 0.5)
    progress.next_stage()
    assert progress.see(0.4, {}, least_gain=0.0) is False  # the run's best stays
    assert (progress.since_best, progress.stage_best, progress.best_score) == (0, 0.4, 0.5)  # the stage's own begins


def test_undefined_scores_keep_the_newest_and_count_as_no_gain():
    progress = Progress()
    assert [progress.see(None, {}, 0.0) for _ in range(2)] == [True, True]
    assert progress.since_best == 2
    assert progress.see(0.1, {}, 0.0)


def test_a_stage_stops_early_and_the_next_one_begins(tmp_path):
    still = {"kind": "sgd", "lr": 1e-12}  # nothing rises any more
    stuck = {"name": "stuck", "optimizer": still, "epochs": 9, "batch_size": 48, "early_stopping": {"patience": 2}}
    results = train(tmp_path / "run", stages=[stuck, JOINT])
    stops = events(tmp_path / "run", "stop")
    assert [(event["stage"], event["reason"]) for event in stops] == [
        ("stuck", "early stopping"),
        ("joint", "all steps done"),
    ]
    assert stops[0]["stage_steps"] == 6  # the first evaluation is the best, two more are not better
    assert results["steps"] == 6 + 3


def test_results_are_those_of_the_best_step(tmp_path):
    results = train(tmp_path / "run", train__epochs=4, train__optimizer={"kind": "adam", "lr": 0.3})
    scores = {event["step"]: event["score"] for event in events(tmp_path / "run", "evaluate")}
    assert results["score"] == max(scores.values())
    assert scores[results["best_step"]] == results["score"]
    assert (tmp_path / "run" / "best").resolve().name == f"step-{results['best_step']}"


@pytest.mark.parametrize("every, steps", [(None, [3, 6]), (2, [2, 4, 6]), (4, [4, 6]), (100, [6])])
def test_evaluations_come_on_a_period_and_at_the_end(tmp_path, every, steps):
    train(tmp_path / "run", train__evaluate_every=every)
    assert [event["step"] for event in events(tmp_path / "run", "evaluate")] == steps


def test_clipping_bounds_each_step(tmp_path):
    sgd = {"kind": "sgd", "lr": 1.0}
    train(tmp_path / "run", stages=[{**JOINT, "optimizer": sgd, "clip": 0.01}], **EACH)
    start = job(stages=[JOINT]).build().state_dict()
    steps = [start, *(tensors(tmp_path / "run", step) for step in (3,))]
    moved = torch.cat([(steps[1][name] - start[name]).flatten() for name in start]).norm()
    assert 0.005 < moved <= 0.0300001  # three steps of at most 0.01


def test_one_task_batches_of_two_sources(tmp_path):
    from tests.studies.test_compare import two_sources

    from polytask.training.loop import fit

    mixture = {"kind": "uniform", "batches": "one_task"}
    fit(two_sources(train__mixture=mixture, train__batch_size=16), tmp_path / "run")
    trained = [sorted(event["losses"]) for event in events(tmp_path / "run", "step")]
    assert {len(tasks) for tasks in trained} == {1}
    assert {tasks[0] for tasks in trained} == {"click", "topic"}
