"""Search: coefficients of the task vectors with the least loss on a few labelled rows, found by Optuna's trials.

Source      Akiba et al. 2019, arXiv:1907.10902 (Optuna), with its tree-structured Parzen estimator (Bergstra et al.
            2011), on the coefficients of task arithmetic (arXiv:2212.04089).
Departures  none: no paper states this merge. The first trial is the start; nothing is differentiated.
Cost        a forward pass of every batch of every task, and one merged model in memory, a trial. Needs extra `tune`.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Annotated, Any

import torch

from polytask.core.constraints import Choice, Interval
from polytask.core.errors import BadValue, MissingExtra
from polytask.core.noise import Noise
from polytask.merging.coefficients import columns
from polytask.merging.learning import Learned, learned
from polytask.merging.session import MergeSession, require_finite


@learned("search", source="arXiv:1907.10902", labels=True)
def search(
    session: MergeSession,
    *,
    each: Annotated[str, Choice("task", "layer")] = "task",
    trials: Annotated[int, Interval(1)] = 50,
    batches: Annotated[int, Interval(1)] = 4,
    start: Annotated[float, Interval()] = 0.3,
    low: Annotated[float, Interval()] = 0.0,
    high: Annotated[float, Interval()] = 1.0,
    noise: Noise,
) -> Learned:
    """Coefficients by trial.

    Args:    each: what one coefficient of a task is for.
             trials: how many merges are tried.
             batches: of each task, the same in every trial.
             start: of every coefficient, in the first trial.
             low, high: between which every coefficient lies.
    """
    if not low <= start <= high or low == high:
        raise BadValue("start, low and high", [start, low, high], "low <= start <= high, and low < high", "search")
    optuna = _optuna()
    groups = columns(session.vectors, each)
    names = {name: f"group {group}" for name, group in groups.items()}
    keys = [f"{task} {group}" for task in session.tasks for group in dict.fromkeys(names.values())]
    space = dict.fromkeys(keys, optuna.distributions.FloatDistribution(low, high))
    history = []
    with _quiet(optuna):
        seed = int(noise.integers(1, 2**31)[0])
        study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed))
        study.enqueue_trial(dict.fromkeys(keys, start))
        for number in range(trials):
            trial = study.ask(space)
            history.append(_loss(session, _by_task(trial.params, session, names), batches, number))
            study.tell(trial, history[-1])
            session.say(number + 1, trials)
        best = dict(study.best_params)
    facts = {"objective_first": history[0], "objective_best": min(history), "trials": trials}
    return Learned(_by_task(best, session, names), facts=facts)


def _by_task(
    numbers: Mapping[str, float], session: MergeSession, groups: Mapping[str, str]
) -> dict[str, float | dict[str, float]]:
    """task -> its number, or where it has several tensor -> number."""
    if len(dict.fromkeys(groups.values())) <= 1:
        group = next(iter(groups.values()))
        return {task: numbers[f"{task} {group}"] for task in session.tasks}
    return {task: {name: numbers[f"{task} {group}"] for name, group in groups.items()} for task in session.tasks}


def _loss(
    session: MergeSession, coefficients: Mapping[str, float | dict[str, float]], batches: int, number: int
) -> float:
    """Of the merge with these coefficients: the tasks' mean losses over the batches that have labels, summed."""
    merge, vectors = Learned(coefficients), session.vectors
    weights = {name: merge.tensor(vectors, name) for name in vectors.names}
    total = 0.0
    with torch.no_grad():
        for task in session.tasks:
            losses = []
            for place in range(batches):
                batch = session.batch(task, place)
                loss = session.loss(task, session.forward(weights, task, batch), batch)
                if loss is not None:
                    require_finite(loss, task, number)
                    losses.append(float(loss))
            total += math.fsum(losses) / max(len(losses), 1)
    return total


def _optuna() -> Any:
    try:
        return import_module("optuna")
    except ImportError:
        raise MissingExtra("optuna", "tune", "the merge 'search'") from None


@contextmanager
def _quiet(optuna: Any) -> Iterator[None]:
    """Optuna tells of every trial; its verbosity is given back."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)
