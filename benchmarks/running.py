"""Runs one experiment and adds its result. An interrupted one goes on where it was."""

import datetime
import os
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil

from benchmarks import results
from benchmarks.experiment import COMPARE, EXPERT_GRAFTS, EXPERT_MERGES, Experiment, read_experiment
from polytask.checkpoints.directory import json_bytes, read_json, write_file
from polytask.core.errors import MissingInput
from polytask.recipes.reading import read_recipe
from polytask.training.provenance import provenance

WORKSPACE = results.ROOT / "build" / "bench"
_SESSIONS, _RECORDED = "sessions.json", "recorded"


def run(
    name: str,
    data_dir: Path | None,
    *,
    fresh: bool = False,
    workspace: Path = WORKSPACE,
    folder: Path = results.FOLDER,
    picture: Path = results.ROOT / "docs" / "images" / "toy.png",
    say: Callable[[str], None] = print,
) -> Path:
    """Runs an experiment in build/bench/NAME and adds its result to results/NAME; returns the new file.

    Args:
        name: of the experiment.
        data_dir: the data folder, for the recipes that need it.
        fresh: start anew instead of going on with an interrupted one.
        workspace, folder, picture: where it works, where results go, and where the toy is drawn.
        say: takes lines of progress.

    Raises:
        CheckpointError: before any work, where there is a result of this day and commit.
    """
    experiment = read_experiment(name)
    commit = results.commit()
    path = results.new_path(name, f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}", commit, folder)
    place = workspace / name
    if fresh or (place / _RECORDED).exists():
        shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True, exist_ok=True)
    sessions = read_json(place / _SESSIONS) if (place / _SESSIONS).exists() else []
    watch = Watch()
    try:
        measured = _measured(experiment, data_dir, place, say)
    finally:
        session = watch.read()
        write_file(place / _SESSIONS, json_bytes([*sessions, session]))
    record = {
        "experiment": name,
        "version": 1,
        "definition": experiment.model_dump(mode="json", exclude_unset=True),
        **measured,
        "hours": sum(past["hours"] for past in [*sessions, session]),
        "cores_used_by_others": max(past["cores_used_by_others"] for past in [*sessions, session]),
        "provenance": {**provenance(), "commit": commit},
    }
    results.append(path, record)
    if experiment.kind == "toy":
        from benchmarks import toy, toy_picture

        base = results.newest(experiment.beside, folder) if experiment.beside else None
        toy_picture.write(toy.joined(base["results"], record["results"]) if base else record["results"], picture)
    write_file(place / _RECORDED, f"{path}\n".encode())
    return path


class Watch:
    """How long something takes, and how busy the machine was with other things: times are to be judged by it."""

    def __init__(self) -> None:
        self._start = (time.perf_counter(), _busy_seconds(), _own_seconds())

    def read(self) -> dict[str, float]:
        """Hours, and the cores that other processes kept busy on average."""
        start, busy, own = self._start
        wall = time.perf_counter() - start
        others = (_busy_seconds() - busy) - (_own_seconds() - own)
        return {"hours": wall / 3600, "cores_used_by_others": round(max(others, 0.0) / wall, 3)}


def _busy_seconds() -> float:
    """Seconds of all cores together in which anything ran, since the machine started."""
    times = psutil.cpu_times()
    idle = times.idle + getattr(times, "iowait", 0.0)
    # A guest's time is in the user's already.
    counted = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
    return counted - idle


def _own_seconds() -> float:
    own = os.times()
    return own.user + own.system + own.children_user + own.children_system


def _measured(experiment: Experiment, data_dir: Path | None, place: Path, say: Callable[[str], None]) -> dict[str, Any]:
    if experiment.kind == COMPARE:
        return _compared(experiment, data_dir, place, say)
    if experiment.kind == EXPERT_MERGES:
        return _merged_experts(experiment, data_dir, place, say)
    if experiment.kind == EXPERT_GRAFTS:
        return _grafted_experts(experiment, data_dir, place, say)
    if experiment.kind == "trees":
        from benchmarks import trees

        assert experiment.recipe is not None  # the experiment's own check
        return {"results": trees.measure(experiment.recipe, _needed(data_dir, f"recipe {experiment.recipe!r}"))}
    if experiment.kind == "step_overhead":
        from benchmarks import step_overhead

        return {"results": step_overhead.measured(200)}
    if experiment.kind == "trainer_overhead":
        from benchmarks import trainer_overhead

        return {"results": trainer_overhead.measure()}
    if experiment.kind == "architecture_cost":
        from benchmarks import architecture_cost

        return {"results": architecture_cost.measured()}
    if experiment.kind == "balancing":
        from benchmarks.balancing import measure as balancing

        return {"results": balancing.measure(say=say)}
    if experiment.kind == "toy":
        from benchmarks import toy

        return {"results": toy.measure([str(rule) for rule in experiment.rules or ()] or None, say=say)}
    if experiment.kind == "school_boosting":
        from benchmarks import school_boosting

        return {"results": school_boosting.measure(_needed(data_dir, "the schools' table"), say=say)}
    if experiment.kind == "merging":
        from benchmarks.merging import measure

        assert experiment.parameters is not None  # the experiment's own check
        return {"results": measure.measure(place, experiment.parameters, say)}
    from benchmarks import start_up

    return {"results": start_up.measure()}


def _compared(experiment: Experiment, data_dir: Path | None, place: Path, say: Callable[[str], None]) -> dict[str, Any]:
    import polytask

    assert experiment.recipe is not None  # the experiment's own check
    prepared, data_dir = _prepared(experiment, data_dir, place)
    study = place / "study"
    found = polytask.compare(
        experiment.recipe,
        out=study,
        rules=experiment.rules,
        sharing=experiment.sharing,
        vary=experiment.vary,
        seeds=experiment.seeds,
        learning_rate_multiples=experiment.learning_rate_multiples,
        parameters=None if experiment.parameters is None else int(experiment.parameters),
        data_dir=data_dir,
        settings=experiment.settings,
        listeners=[_Progress(say)],
    )
    resolved = read_recipe(experiment.recipe, experiment.settings).recipe.resolved()
    commits = sorted({str(commit) for commit in _commits(study)})
    return {"results": results.compact(found), "recipe": resolved, "commits_of_runs": commits, **prepared}


def _merged_experts(
    experiment: Experiment, data_dir: Path | None, place: Path, say: Callable[[str], None]
) -> dict[str, Any]:
    from benchmarks.expert_merges import measure
    from benchmarks.expert_merges.settings import ROOMS
    from polytask.recipes.run import make_job

    assert experiment.recipe is not None  # the experiment's own check
    prepared, data_dir = _prepared(experiment, data_dir, place)
    seeds = [{"train.seed": seed} for seed in experiment.other_seeds or ()]
    rules, alone = experiment.rules or ROOMS, experiment.beside is None
    found, commits = [], dict[str, None]()
    for changed in seeds or [{}]:
        read = read_recipe(experiment.recipe, {**experiment.settings, **changed})
        job, inner = make_job(read, data_dir=data_dir), place / f"seed-{changed['train.seed']}" if changed else place
        found.append(measure.measure(job, inner, rules, say, data_dir=data_dir, alone=alone))
        commits |= dict.fromkeys(found[-1].pop("commits_of_runs"))
    measured = {"other_seeds": found} if seeds else found[0]
    recipe = read_recipe(experiment.recipe, experiment.settings).recipe.resolved()
    return {"results": measured, "recipe": recipe, "commits_of_runs": sorted(commits), **prepared}


def _grafted_experts(
    experiment: Experiment, data_dir: Path | None, place: Path, say: Callable[[str], None]
) -> dict[str, Any]:
    from benchmarks.expert_merges import grafts
    from polytask.recipes.run import make_job

    assert experiment.recipe is not None  # the experiment's own check
    prepared, data_dir = _prepared(experiment, data_dir, place)
    read = read_recipe(experiment.recipe, experiment.settings)
    measured = grafts.measure(make_job(read, data_dir=data_dir), place, experiment.rules or (), say)
    commits = measured.pop("commits_of_runs")
    return {"results": measured, "recipe": read.recipe.resolved(), "commits_of_runs": commits, **prepared}


def _prepared(experiment: Experiment, data_dir: Path | None, place: Path) -> tuple[dict[str, Any], Path | None]:
    """What the record says of the changed data, and the folder where they are."""
    if experiment.prepare is None:
        return {}, data_dir
    from benchmarks import distinct_texts

    assert experiment.recipe is not None  # the experiment's own check
    spec = read_recipe(experiment.recipe).recipe.data
    lost = distinct_texts.prepare(spec, _needed(data_dir, f"recipe {experiment.recipe!r}"), place / "data")
    return {"training_rows_taken_out": lost}, place / "data"


def _commits(study: Path) -> list[str | None]:
    """An interrupted experiment may have gone on at another commit; a reader must be able to see it."""
    return [read_json(path)["provenance"]["commit"] for path in sorted((study / "runs").rglob("results.json"))]


def _needed(data_dir: Path | None, what: str) -> Path:
    if data_dir is None:
        raise MissingInput(f"{what} needs the data folder: set POLYTASK_DATA")
    return data_dir


class _Progress:
    """One line a run, with the time that has passed."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say, self.start = say, time.perf_counter()

    def __call__(self, event: Mapping[str, Any]) -> None:
        if event["event"] == "run":
            minutes = (time.perf_counter() - self.start) / 60
            self.say(f"  {minutes:6.1f} min  run {event['index']} of {event['of']}: {event['name']}")
