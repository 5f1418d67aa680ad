"""Exam scores of pupils in 139 schools: robust multi-task boosting beside scikit-learn's, pooled and for each school.

For each seed every school's pupils are split anew (60 % train, 20 % validation, 20 % test). Each row's settings, and
its number of trees, have the smallest validation error over all pupils, and the test pupils are scored once.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from polytask.core.noise import Noise

TABLE, LABEL, TASK = "multi_target/school.parquet", "exam_score", "school"
SEEDS, DEPTHS, MOST_TREES = 5, (2, 4), 200
ROWS = {
    "pooled": "scikit-learn's gradient boosting, one model, which does not see the school",
    "pooled_with_school": "scikit-learn's histogram boosting, one model with the school as a category",
    "per_school": "scikit-learn's gradient boosting, a model a school",
    "robust": "robust multi-task boosting",
    "robust_without_partition": "the same without the block of outlier weights",
}


class Part(NamedTuple):
    """Pupils of one split: features [n, d] with the school in column 0, scores [n]."""

    X: np.ndarray
    y: np.ndarray


Split = tuple[Part, Part, Part]


class Candidate(NamedTuple):
    """A setting with its predictions on validation and test, and, where there are, the schools' outlier weights."""

    setting: dict[str, Any]
    valid: np.ndarray
    test: np.ndarray
    outlier_weights: np.ndarray | None = None


def measure(
    data_dir: Path,
    *,
    seeds: int = SEEDS,
    depths: Sequence[int] = DEPTHS,
    most_trees: int = MOST_TREES,
    schools: int | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """{rows: [{name, runs: [{seed, setting, valid, test, ...}]}]}; `schools`: only the first ones, to try the code."""
    frame = pl.read_parquet(data_dir / TABLE)
    if schools is not None:
        frame = frame.filter(pl.col(TASK) < schools)
    X = frame.select(TASK, pl.exclude(TASK, LABEL)).to_numpy().astype(np.float64)
    y = frame[LABEL].to_numpy().astype(np.float64)
    candidates = {
        "pooled": lambda split: _pooled(split, depths, most_trees),
        "pooled_with_school": lambda split: _with_school(split, depths, most_trees),
        "per_school": lambda split: _per_school(split, depths, most_trees),
        "robust": lambda split: _robust(split, depths, most_trees, partition=True),
        "robust_without_partition": lambda split: _robust(split, depths, most_trees, partition=False),
    }
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in candidates}
    for seed in range(seeds):
        split = _split(X, y, seed)
        for name, tried in candidates.items():
            start = time.perf_counter()
            runs[name].append({"seed": seed, **_best(tried(split), split), "seconds": time.perf_counter() - start})
            say(f"  seed {seed} {name}: test RMSE {runs[name][-1]['test']['rmse']:.3f}")
    rows = [{"name": name, "runs": found} for name, found in runs.items()]
    return {"pupils": len(y), "schools": len(np.unique(X[:, 0])), "rows": rows}


def _split(X: np.ndarray, y: np.ndarray, seed: int) -> Split:
    """Each school's pupils in random order: the first 60 % train, the next 20 % select, the rest test."""
    place = np.empty(len(y))
    rank = Noise(seed, "split").permutation(len(y)).argsort()
    for school in np.unique(X[:, 0]):
        mine = np.flatnonzero(X[:, 0] == school)
        place[mine[rank[mine].argsort()]] = (np.arange(len(mine)) + 0.5) / len(mine)
    parts = np.digitize(place, [0.6, 0.8])
    train, valid, test = (Part(X[parts == part], y[parts == part]) for part in range(3))
    return train, valid, test


def _best(candidates: Iterator[Candidate], split: Split) -> dict[str, Any]:
    _, valid, test = split
    chosen = min(candidates, key=lambda tried: _rmse(tried.valid, valid.y))
    weights = chosen.outlier_weights
    return {
        "setting": chosen.setting,
        "valid": {"rmse": _rmse(chosen.valid, valid.y)},
        "test": _scores(chosen.test, test),
        **({} if weights is None else {"outlier_weights": [float(weight) for weight in weights]}),
    }


def _scores(predicted: np.ndarray, part: Part) -> dict[str, float]:
    """Over all pupils: RMSE and R2; and the mean over schools of each school's RMSE."""
    schools = part.X[:, 0]
    by_school = [_rmse(predicted[schools == school], part.y[schools == school]) for school in np.unique(schools)]
    r2 = 1 - np.square(predicted - part.y).sum() / np.square(part.y - part.y.mean()).sum()
    return {"rmse": _rmse(predicted, part.y), "r2": float(r2), "school_rmse": float(np.mean(by_school))}


def _rmse(predicted: np.ndarray, y: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(predicted - y))))


def _pooled(split: Split, depths: Sequence[int], most_trees: int) -> Iterator[Candidate]:
    from sklearn.ensemble import GradientBoostingRegressor

    for depth in depths:
        model = GradientBoostingRegressor(n_estimators=most_trees, max_depth=depth, random_state=0)
        model.fit(split[0].X[:, 1:], split[0].y)
        stages = zip(*(model.staged_predict(part.X[:, 1:]) for part in split[1:]), strict=True)
        for trees, (valid, test) in enumerate(stages, start=1):
            yield Candidate({"depth": depth, "trees": trees}, valid, test)


def _with_school(split: Split, depths: Sequence[int], most_trees: int) -> Iterator[Candidate]:
    from sklearn.ensemble import HistGradientBoostingRegressor

    for depth in depths:
        model = HistGradientBoostingRegressor(
            max_iter=most_trees, max_depth=depth, categorical_features=[0], early_stopping=False, random_state=0
        ).fit(split[0].X, split[0].y)
        stages = zip(*(model.staged_predict(part.X) for part in split[1:]), strict=True)
        for trees, (valid, test) in enumerate(stages, start=1):
            yield Candidate({"depth": depth, "trees": trees}, valid, test)


def _per_school(split: Split, depths: Sequence[int], most_trees: int) -> Iterator[Candidate]:
    """One depth and one number of trees for all schools."""
    from sklearn.ensemble import GradientBoostingRegressor

    most_trees = min(most_trees, 50)  # a school has some sixty pupils to learn from
    for depth in depths:
        found = [np.empty((most_trees, len(part.y))) for part in split[1:]]
        for school in np.unique(split[0].X[:, 0]):
            mine = split[0].X[:, 0] == school
            model = GradientBoostingRegressor(n_estimators=most_trees, max_depth=depth, random_state=0)
            model.fit(split[0].X[mine][:, 1:], split[0].y[mine])
            for stages, part in zip(found, split[1:], strict=True):
                there = part.X[:, 0] == school
                stages[:, there] = list(model.staged_predict(part.X[there][:, 1:]))
        for trees in range(most_trees):
            yield Candidate({"depth": depth, "trees": trees + 1}, found[0][trees], found[1][trees])


def _robust(split: Split, depths: Sequence[int], most_trees: int, *, partition: bool) -> Iterator[Candidate]:
    """Shared trees, an eighth of them for each ensemble of the partition, and up to a tenth for each school."""
    from polytask.boosting import RobustBoostingRegressor

    for depth in depths:
        for shared in (most_trees // 4, most_trees // 2):
            setting = {"max_depth": depth, "shared_trees": shared, "partition_trees": most_trees // 8 * partition}
            model = RobustBoostingRegressor(task=0, task_trees=most_trees // 10, **setting).fit(*split[0])
            stages = zip(*(model.staged_predict(part.X) for part in split[1:]), strict=True)
            for trees, (valid, test) in enumerate(stages):
                weights = model.outlier_weights_ if partition else None
                yield Candidate({**setting, "task_trees": trees}, valid, test, weights)
