"""Rules that compute the losses again: what the trainer hands to them, and resuming in between."""

from typing import Any

import numpy as np
import pytest
from tests.training.runs import assert_resumes, events, job, recipe, table, train, weights

import polytask
from polytask.core.errors import BadValue, Inconsistent, MissingInput, PolytaskError, UnknownName
from polytask.training.job import stage_balancer

DROPOUT = {"kind": "tabular", "embedding": 2, "hidden_sizes": [8], "dropout": 0.3}
RULES: dict[str, Any] = {
    "sharpness_aware": {"kind": "sharpness_aware", "inner": "pcgrad", "groups": "layer"},
    "sharpness_aware, looking again": {"kind": "sharpness_aware", "inner": {"kind": "famo", "learning_rate": 0.1}},
    "auto_lambda": {"kind": "auto_lambda", "learning_rate": 0.05},
    "coba": {"kind": "coba", "warmup": 1, "history": 3},
    "flat and convergence_balanced": {"kind": "sharpness_aware", "inner": "convergence_balanced"},
}


@pytest.mark.parametrize("name", RULES)
def test_a_resumed_run_equals_a_straight_one(tmp_path, name):
    assert_resumes(tmp_path, 4, train__rule=RULES[name], model__encoder=DROPOUT)  # in the second epoch
    steps = events(tmp_path / "straight", "step")
    assert len(steps) == 6
    assert steps[0]["weights"] != steps[-1]["weights"]
    if name != "coba":
        measured = "validation" if name == "auto_lambda" else "sharpness"
        assert all(list(step["measured"][measured]) == list(step["losses"]) for step in steps)


def test_data_balanced_gets_the_trainer_s_counts(tmp_path):
    """Half of the rows have no label of `buy`, so its weight goes up and down with its share of the batch."""
    train(tmp_path / "run", train__rule="data_balanced")
    found = [step["weights"] for step in events(tmp_path / "run", "step")]
    assert {weights["click"] for weights in found} == {0.25}
    assert len({weights["buy"] for weights in found}) > 3


def test_a_radius_of_zero_sees_the_same_dropout(tmp_path):
    """No perturbation, the same dropout: the losses do not rise by a bit, and the run is that of the inner rule."""
    settings = {"model__encoder": DROPOUT, "train__optimizer": {"kind": "sgd", "lr": 0.1}}
    rule = {"kind": "sharpness_aware", "inner": "equal", "radius": 0, "private_radius": 0}
    train(tmp_path / "flat", train__rule=rule, **settings)
    train(tmp_path / "plain", train__rule="equal", **settings)
    for flat, plain in zip(events(tmp_path / "flat", "step"), events(tmp_path / "plain", "step"), strict=True):
        assert set(flat["measured"]["sharpness"].values()) == {0.0}
        assert flat["losses"] == pytest.approx(plain["losses"], rel=1e-5)


def split_table(changed: str | None = None) -> dict[str, Any]:
    """Rows with their split in a column; the labels of one split turned around."""
    rows = table()
    names = np.array(["train"] * 96 + ["valid"] * 32 + ["test"] * 32)
    return {**rows, "click": np.where(names == changed, 1 - rows["click"], rows["click"]), "split": names}


def test_the_validation_batch_is_of_the_validation_split(tmp_path):
    """Other labels in the test split change no weight of the model, in the validation split they do."""
    rule = {"kind": "auto_lambda", "learning_rate": 0.05}
    settings = {"train__rule": rule, "data": {"split": "split"}, "train__epochs": 1}
    found = {}
    for name in ("none", "test", "valid"):
        values = recipe(**settings)
        polytask.train(values, out=tmp_path / name, data={"data": split_table(name)})
        found[name] = (weights(tmp_path / name), [step["weights"] for step in events(tmp_path / name, "step")])
    assert found["test"] == found["none"]
    assert found["valid"] != found["none"]


@pytest.mark.parametrize("primary", [None, ["click", "buy"]])
def test_primary_tasks_are_those_of_role_target(tmp_path, primary):
    """Named, or by their role: the same run."""
    tasks = {"click": "binary", "buy": "binary", "topic": {"kind": "multiclass", "role": "auxiliary"}}
    rule = {"kind": "auto_lambda", "learning_rate": 0.05, **({"primary": primary} if primary else {})}
    train(tmp_path / "run", tasks=tasks, train__rule=rule)
    train(tmp_path / "other", tasks=tasks, train__rule={**rule, "primary": ["click", "buy", "topic"]})
    found = [step["weights"] for step in events(tmp_path / "run", "step")]
    assert found != [step["weights"] for step in events(tmp_path / "other", "step")]
    made = job(tasks=tasks, train__rule=rule)
    (stage,) = made.stages
    assert stage_balancer(stage, made.targets, 0).parameters["primary"] == ["click", "buy"]


def test_mistakes_are_found_when_the_recipe_is_read(tmp_path):
    for error, match, rule in [
        (UnknownName, "no rule 'upgard' .did you mean 'upgrad'", {"kind": "sharpness_aware", "inner": "upgard"}),
        (BadValue, "radius is -1", {"kind": "sharpness_aware", "radius": -1}),
        (UnknownName, "primary: no task 'clik' .did you mean 'click'", {"kind": "auto_lambda", "primary": ["clik"]}),
    ]:
        with pytest.raises(error, match=match):
            job(train__rule=rule)


GENERATED = {"kind": "maxl", "virtual_step": 0.1, "generated": {"task": "topic", "classes": 2}}


def test_generated_labels_resume_and_stay_out_of_the_model(tmp_path):
    """Three classes divided by two: the head and the generator are in the stage's state, not in the checkpoint."""
    assert_resumes(tmp_path, 4, train__rule=GENERATED, model__encoder=DROPOUT)
    train(tmp_path / "plain", model__encoder=DROPOUT)
    assert weights(tmp_path / "straight").keys() == weights(tmp_path / "plain").keys()
    steps = events(tmp_path / "straight", "step")
    assert all(step["losses"].keys() > {"topic.generated", "topic.spread"} for step in steps)
    assert all(-np.log(6) - 1e-6 <= step["losses"]["topic.spread"] < 0 for step in steps)
    assert steps[0]["weights"]["topic.spread"] == 0.2


def test_generated_labels_move_with_the_primary_tasks(tmp_path):
    """Another primary task gives the generator another gradient, and so from the second step on other labels."""
    found = {}
    for primary in ("topic", "price"):
        train(tmp_path / primary, train__rule={**GENERATED, "primary": [primary]})
        found[primary] = [step["losses"]["topic.spread"] for step in events(tmp_path / primary, "step")]
    assert found["topic"][0] == found["price"][0]
    assert found["topic"][1:] != found["price"][1:]


def test_generated_labels_that_do_not_fit():
    def of(**changes):
        return {**GENERATED, "generated": {**GENERATED["generated"], **changes}}

    for error, match, rule, more in [
        (MissingInput, "rule 'maxl' trains a generator of labels and needs `rule: ", "maxl", {}),
        (Inconsistent, "trained by rule 'maxl', not by 'equal'", {**of(), "kind": "equal", "virtual_step": None}, {}),
        (UnknownName, "no task 'topik' .did you mean 'topic'", of(task="topik"), {}),
        (BadValue, "kind of task 'price' is 'regression'", of(task="price"), {}),
        (PolytaskError, "classes.* is 1", of(classes=1), {}),
        (Inconsistent, "attachments do not go with", GENERATED, {"train__attachments": ["rotograd"]}),
    ]:
        given = {key: value for key, value in rule.items() if value is not None} if isinstance(rule, dict) else rule
        with pytest.raises(error, match=match):
            job(train__rule=given, **more)


def test_generated_labels_in_a_comparison(tmp_path):
    """Beside a rule without them, with single-task baselines and a report."""
    study = recipe(train__epochs=1, tasks={"click": "binary", "topic": "multiclass"})
    found = polytask.compare(
        study,
        out=tmp_path / "study",
        data={"data": table()},
        rules=["equal", GENERATED],
        seeds=1,
        learning_rate_multiples=[1.0],
    )
    assert len(found["rows"]) == 3
    assert (tmp_path / "study" / "report.html").exists()
