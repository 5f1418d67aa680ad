"""The comparison: the same budget for every row, learning rates chosen on validation, nothing done twice."""

import json
from pathlib import Path
from typing import Any

import pytest
from tests.training.runs import events, job, recipe, table

import polytask
from polytask.core.errors import BadValue, CheckpointError, NotFinite, PolytaskError, UnknownName
from polytask.studies.baseline import single_task
from polytask.studies.compare import Budget, Variant, compare
from polytask.tasks.mixture import Mixture
from polytask.training.job import Job

SMALL = {"tasks": {"click": "binary", "price": "regression"}, "data__drop": ["buy", "topic"], "train__epochs": 1}
TWO_SEEDS = Budget(seeds=(3, 5), multiples=(0.5, 2.0))


def run_of(job: Job, name: str = "joint", **variation: Any) -> Variant:
    return Variant(name, job, variation)


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("study") / "dir"
    base = job(**SMALL)
    variants = [run_of(base, "equal"), run_of(job(**SMALL, train__rule="upgrad"), "a/b: upgrad", rule="upgrad")]
    return out, compare(variants, base, TWO_SEEDS, out, recipe=base.recipe)


def test_every_row_has_the_form_that_tables_read(study):
    out, results = study
    assert results == json.loads((out / "results.json").read_text())
    assert results["budget"] == {"steps": 3, "learning_rates": [0.005, 0.02], "seeds": [3, 5]}
    assert [(row["name"], row["rule"], row["sharing"]) for row in results["rows"]] == [
        ("single", "equal", "single"),
        ("equal", "equal", "hard"),
        ("a/b: upgrad", "upgrad", "hard"),
    ]
    assert results["rows"][2]["variation"] == {"rule": "upgrad"}
    assert list(results["tasks"]) == ["click", "price"]
    assert results["tasks"]["price"] == {
        "kind": "regression",
        "metric": "r2",
        "higher_is_better": True,
        "role": "target",
    }
    for row in results["rows"]:
        assert [run["seed"] for run in row["runs"]] == [3, 5]
        for run in row["runs"]:
            assert list(run["valid"]) == list(run["test"]) == ["click", "price"]
            paths = run["runs_by_task"].values() if row["name"] == "single" else [run["run"]]
            assert all((out / path / "results.json").exists() for path in paths)
    assert (out / "table.csv").read_text().count("\n") >= 4
    assert "upgrad" in (out / "table.tex").read_text()


def test_the_learning_rate_is_chosen_on_validation_with_the_first_seed(study):
    _, results = study
    for row in results["rows"][1:]:
        first, second = row["runs"]
        tried = {run["learning_rate"]: run["score"] for run in first["all_runs"]}
        assert list(tried) == [0.005, 0.02]
        assert first["learning_rate"] == second["learning_rate"] == max(tried, key=lambda rate: tried[rate])
        assert first["score"] == max(tried.values())
        assert "all_runs" not in second


def test_every_task_of_the_baseline_chooses_its_own_rate(study):
    out, results = study
    first = results["rows"][0]["runs"][0]
    for task, path in first["runs_by_task"].items():
        scores = {
            run.name: json.loads((run / "results.json").read_text())["score"] for run in (out / path).parent.iterdir()
        }
        tried = {name: score for name, score in scores.items() if name.startswith("seed-3")}
        assert len(tried) == 2
        assert Path(path).name == max(tried, key=lambda name: tried[name])
        assert first["learning_rate"][task] == (0.005 if path.endswith("0.5") else 0.02)


def test_the_test_split_is_scored_at_the_end_only(study):
    out, _ = study
    for stream in out.glob("runs/**/events.jsonl"):
        assert "test" not in {event["split"] for event in events(stream.parent, "evaluate")}


def test_single_task_runs_add_up(study):
    out, results = study
    for run in results["rows"][0]["runs"]:
        alone = [json.loads((out / path / "results.json").read_text()) for path in run["runs_by_task"].values()]
        assert run["seconds"] == pytest.approx(sum(each["seconds"] for each in alone))
        assert run["parameters"]["total"] == sum(each["parameters"]["total"] for each in alone)
        assert [list(each["tasks"]) for each in alone] == [["click"], ["price"]]
        assert {each["steps"] for each in alone} == {run["steps"]}


def test_delta_m_comes_out_of_the_whole_chain(study):
    """By hand from the test values: the mean over tasks of (value - single) / |single|, both higher is better."""
    from polytask.evaluation.table import comparison

    _, results = study
    mean = {
        row["name"]: {task: sum(run["test"][task] for run in row["runs"]) / 2 for task in ("click", "price")}
        for row in results["rows"]
    }
    single = mean["single"]
    shown = {row.name: row for row in comparison(results).rows}
    for name in ("equal", "a/b: upgrad"):
        by_hand = sum((mean[name][task] - single[task]) / abs(single[task]) for task in single) / 2 * 100
        assert shown[name].delta.estimate.mean == pytest.approx(by_hand)


def test_an_interrupted_comparison_goes_on(study, tmp_path):
    _, results = study
    base = job(**SMALL)
    variants = [run_of(base, "equal"), run_of(job(**SMALL, train__rule="upgrad"), "a/b: upgrad", rule="upgrad")]
    begun: list[str] = []

    def stop_in_the_eighth(event):
        if event["event"] == "run":
            begun.append(event["name"])
        if len(begun) == 8 and event["event"] == "step":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare(variants, base, TWO_SEEDS, tmp_path, listeners=[stop_in_the_eighth], recipe=base.recipe)
    trained: list[dict] = []
    again = compare(variants, base, TWO_SEEDS, tmp_path, listeners=[trained.append], recipe=base.recipe)
    assert sum(event["event"] == "run" for event in trained) == 12
    assert sum(event["event"] == "start" for event in trained) == 12 - 7

    def scores(results):
        return [[(run["seed"], run["valid"], run["test"]) for run in row["runs"]] for row in results["rows"]]

    assert scores(again) == scores(results)
    trained.clear()
    assert scores(compare(variants, base, TWO_SEEDS, tmp_path, listeners=[trained.append])) == scores(results)
    assert not any(event["event"] == "start" for event in trained)


def test_a_rate_that_diverges_is_out_of_the_choice(tmp_path):
    base = job(**{**SMALL, "train__optimizer": {"kind": "sgd", "lr": 0.01}, "train__epochs": 4})
    results = compare([run_of(base)], base, Budget(seeds=(0,), multiples=(1.0, 1e30)), tmp_path / "one")
    (run,) = results["rows"][1]["runs"]
    assert run["learning_rate"] == 0.01
    kept, failed = run["all_runs"]
    assert kept["score"] == run["score"]
    assert failed["score"] is None
    assert "not finite" in failed["error"] or "nan" in failed["error"] or "inf" in failed["error"]
    with pytest.raises(NotFinite, match="single click: no learning rate works"):
        compare([run_of(base)], base, Budget(seeds=(0,), multiples=(1e30,)), tmp_path / "none")


def test_baselines_are_for_the_tasks_that_the_model_is_for(tmp_path):
    tasks = {"click": "binary", "price": {"kind": "regression", "role": "auxiliary"}}
    base = job(**{**SMALL, "tasks": tasks})
    results = compare([run_of(base)], base, Budget(seeds=(0,), multiples=(1.0,)), tmp_path / "one")
    assert list(results["tasks"]) == ["click"]
    assert list(results["rows"][0]["runs"][0]["runs_by_task"]) == ["click"]
    assert list(results["rows"][1]["runs"][0]["test"]) == ["click"]
    every = {name: {"kind": kind, "role": "auxiliary"} for name, kind in SMALL["tasks"].items()}
    base = job(**{**SMALL, "tasks": every})
    results = compare([run_of(base)], base, Budget(seeds=(0,), multiples=(1.0,)), tmp_path / "all")
    assert list(results["tasks"]) == ["click", "price"]
    assert results["rows"][0]["runs"][0]["score"] is not None


# --- the budget -----------------------------------------------------------------------------------------------------


def two_sources(**settings: Any) -> Job:
    from polytask.recipes.reading import read_recipe
    from polytask.recipes.run import make_job

    tasks = {"click": {"kind": "binary", "source": "big"}, "topic": {"kind": "multiclass", "source": "small"}}
    big = {key: values for key, values in table(200).items() if key not in ("topic", "buy", "price")}
    small = {key: values for key, values in table(50, seed=1).items() if key not in ("click", "buy", "price")}
    data = {"split": {"fractions": [0.6, 0.2, 0.2], "seed": 0}}
    values = recipe(data=data, tasks=tasks, **settings)
    return make_job(read_recipe(values), data={"big": big, "small": small})


def sizes(job: Job, stage: int = 0) -> list[dict[str, int]]:
    """Rows of each source in each step of a stage's first epochs."""
    spec = job.stages[stage]
    used = {
        name: source.splits["train"] for name, source in job.data.sources.items() if set(source.tasks) & set(job.tasks)
    }
    mixture = Mixture(used, spec.mixture, spec.batch_size, seed=0)
    steps = spec.steps or spec.epochs * mixture.steps_per_epoch
    found: list[dict[str, int]] = []
    while len(found) < steps:
        epoch, start = divmod(len(found), mixture.steps_per_epoch)
        found += [{piece.source: len(piece) for piece in pieces} for pieces in mixture.batches(epoch, start)]
    return found[:steps]


@pytest.mark.parametrize("mixture", ["proportional", "uniform", {"kind": "temperature", "value": 2}])
def test_a_baseline_sees_its_labels_as_often_as_in_mixed_batches(mixture):
    base = two_sources(train__mixture=mixture, train__batch_size=15, train__epochs=3)
    joint = sizes(base)
    for task, source in (("click", "big"), ("topic", "small")):
        alone = single_task(base, task)
        assert [step[source] for step in sizes(alone)] == [step[source] for step in joint]
        assert alone.run.evaluate_every == len(joint) / 3


def test_a_baseline_takes_the_steps_of_its_source_where_batches_have_one_task():
    length = {"train__batch_size": 15, "train__epochs": None, "train__steps": 40}
    base = two_sources(train__mixture={"kind": "uniform", "batches": "one_task"}, **length)
    drawn = [next(iter(step)) for step in sizes(base)]
    for task, source in (("click", "big"), ("topic", "small")):
        alone = single_task(base, task)
        assert alone.stages[0].batch_size == 15
        assert alone.stages[0].steps == 20  # the expected number
        assert drawn.count(source) == pytest.approx(20, abs=7)
        assert alone.run.evaluate_every == 5  # half of the joint run's 10 steps an epoch


def test_a_baseline_has_the_stages_of_its_task_only():
    stages = [
        {"name": "warm", "tasks": ["click"], "trainable": ["heads"], "steps": 2, "batch_size": 32},
        {"name": "joint", "rule": "upgrad", "epochs": 2, "batch_size": 48},
    ]
    base = job(stages=stages)
    both, one = single_task(base, "click"), single_task(base, "price")
    assert [(stage.name, stage.steps) for stage in both.stages] == [("warm", 2), ("joint", 4)]
    assert [(stage.name, stage.steps, stage.batch_size) for stage in one.stages] == [("joint", 4, 48)]
    assert {stage.rule.kind for stage in both.stages} == {"equal"}
    assert both.run.evaluate_every is None
    only = job(stages=stages[:1])
    with pytest.raises(BadValue, match="stages that train task 'price'"):
        single_task(only, "price")


# --- from a recipe --------------------------------------------------------------------------------------------------


def test_rules_architectures_and_other_values_vary(tmp_path):
    results = polytask.compare(
        recipe(**SMALL),
        out=tmp_path / "study",
        data={"data": table()},
        rules=["equal", "dwa"],
        sharing=["hard", "mmoe"],
        vary={"train.batch_size": [32, 64]},
        seeds=1,
        learning_rate_multiples=[1],
    )
    names = [row["name"] for row in results["rows"][1:]]
    assert names == [
        f"{rule}, {sharing}, batch_size={size}"
        for rule in ("equal", "dwa")
        for sharing in ("hard", "mmoe")
        for size in (32, 64)
    ]
    row = results["rows"][names.index("dwa, mmoe, batch_size=64") + 1]
    assert (row["rule"], row["sharing"]) == ("dwa", "mmoe")
    assert row["variation"] == {"rule": "dwa", "model.sharing": "mmoe", "train.batch_size": 64}
    assert row["runs"][0]["steps"] == 2
    assert (tmp_path / "study" / "report.html").exists()


def test_a_rule_with_parameters_is_a_row_that_says_them(tmp_path):
    heavy = {"kind": "static", "weights": {"click": 3, "price": 1}}
    results = polytask.compare(
        recipe(**SMALL),
        out=tmp_path / "study",
        data={"data": table()},
        rules=["equal", heavy, {"kind": "cagrad", "c": 0.4}],
        seeds=1,
        learning_rate_multiples=[1],
    )
    names = [row["name"] for row in results["rows"][1:]]
    assert names == ["equal", "static weights=(click 3, price 1)", "cagrad c=0.4"]
    assert [row["rule"] for row in results["rows"][1:]] == ["equal", "static", "cagrad"]
    assert results["rows"][2]["variation"] == {"rule": heavy}
    scores = [row["runs"][0]["score"] for row in results["rows"][1:]]
    assert scores[0] != scores[1]
    with pytest.raises(UnknownName, match="did you mean 'static'"):
        polytask.compare(recipe(**SMALL), out=tmp_path / "x", data={"data": table()}, rules=[{"kind": "statik"}])


def test_directories_and_names_that_do_not_fit_are_refused(tmp_path):
    base = job(**SMALL)
    budget = Budget(seeds=(0,), multiples=(1.0,))
    for names in (["single"], ["same", "same"]):
        with pytest.raises(BadValue, match="names of the variants"):
            compare([run_of(base, name) for name in names], base, budget, tmp_path / "study")
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(CheckpointError, match="not empty, and no comparison"):
        compare([run_of(base)], base, budget, tmp_path)
    for wrong in (
        {"seeds": ()},
        {"seeds": (1, 1)},
        {"multiples": ()},
        {"multiples": (0.0,)},
        {"multiples": (1.0, 1.0)},
    ):
        with pytest.raises(BadValue, match=r"seeds|learning_rate_multiples"):
            Budget(**wrong)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"model__sharing": "oneformer"}, "'oneformer'"),
        ({"train__trainable": ["sharng"]}, r"trainable: no beginning .*mean 'sharing'"),
    ],
)
def test_a_row_that_cannot_be_trained_is_refused_before_the_first_run(tmp_path, wrong, message):
    base, heard = job(**SMALL), []
    variants = [run_of(base), run_of(job(**SMALL, **wrong), "other")]
    with pytest.raises(PolytaskError, match=message):
        compare(variants, base, TWO_SEEDS, tmp_path / "study", listeners=[heard.append])
    assert not heard
    assert not (tmp_path / "study").exists()


def test_names_that_differ_in_signs_only_have_folders_of_their_own(tmp_path):
    base = job(**SMALL)
    variants = [run_of(base, "a/b"), run_of(base, "a:b")]
    results = compare(variants, base, Budget(seeds=(0,), multiples=(1.0,)), tmp_path)
    paths = [row["runs"][0]["run"] for row in results["rows"][1:]]
    assert paths == ["runs/a_b/seed-0-rate-1", "runs/a_b_/seed-0-rate-1"]
