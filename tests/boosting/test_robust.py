"""Robust multi-task boosting: scikit-learn's own checks, the blocks against a reference, outliers that are found."""

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.ensemble import GradientBoostingClassifier, GradientBoostingRegressor
from sklearn.tree import DecisionTreeRegressor
from sklearn.utils.estimator_checks import parametrize_with_checks

import polytask
from polytask.boosting import RobustBoostingClassifier, RobustBoostingRegressor
from polytask.core.errors import BadValue, UnknownName
from polytask.core.noise import Noise

FEW = {"shared_trees": 20, "partition_trees": 5, "task_trees": 5}
KINDS = [RobustBoostingRegressor, RobustBoostingClassifier]


@parametrize_with_checks([kind(**FEW) for kind in KINDS])
def test_it_is_an_estimator(estimator, check) -> None:
    check(estimator)


def outlying(rows: int = 1200, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(X with the task in column 0, y, tasks): six tasks, of which 2 and 5 are the others' negative."""
    x = Noise(seed, "x").uniform(4 * rows).reshape(rows, 4) * 2 - 1
    tasks = Noise(seed, "task").integers(rows, 6)
    sign = np.where(np.isin(tasks, [2, 5]), -1.0, 1.0)
    y = sign * (np.sin(3 * x[:, 0]) + x[:, 1] * x[:, 2]) + 0.1 * Noise(seed, "y").normal(rows)
    return np.column_stack([tasks * 10.0, x]), y, tasks


@pytest.mark.parametrize("shared", [20, 100])
def test_outliers_get_the_larger_weight_and_the_other_tasks_do_not_suffer(shared: int) -> None:
    X, y, _ = outlying()
    model = RobustBoostingRegressor(task=0, shared_trees=shared, partition_trees=50, task_trees=0).fit(X, y)
    assert model.tasks_.tolist() == [0, 10, 20, 30, 40, 50]
    weights = dict(zip(model.tasks_, model.outlier_weights_, strict=True))
    assert min(weights[20], weights[50]) > 0.9
    assert max(weights[task] for task in (0, 10, 30, 40)) < 0.1
    plain = clone(model).set_params(weight_rate=0.0).fit(X, y)
    new, truth, of = outlying(seed=1)
    errors = {name: np.square(fitted.predict(new) - truth) for name, fitted in (("robust", model), ("plain", plain))}
    for outlier in (True, False):
        there = np.isin(of, [2, 5]) == outlier
        assert errors["robust"][there].mean() < 0.5 * errors["plain"][there].mean()


def test_alike_tasks_lean_to_one_ensemble() -> None:
    X, y, _ = outlying()
    same = np.isin(X[:, 0], [0, 10, 30])
    model = RobustBoostingRegressor(task=0, shared_trees=0, partition_trees=40, task_trees=0).fit(X[same], y[same])
    assert np.ptp(model.outlier_weights_) < 0.2


def test_equals_the_blocks_written_out() -> None:
    """Squared error by hand: scikit-learn's trees on the slopes, the weights by their own formula."""
    X, y, tasks = outlying(300)
    model = RobustBoostingRegressor(
        task=0, shared_trees=2, partition_trees=3, task_trees=2, learning_rate=0.3, start=0.1, penalty=0.05
    ).fit(X, y)
    x, z = X[:, 1:].astype(np.float32), (y - y.mean()) / y.std()

    def tree(target: np.ndarray) -> np.ndarray:
        return 0.3 * DecisionTreeRegressor(max_depth=3, random_state=0).fit(x, target).predict(x)

    shared = np.zeros(300)
    for _ in range(2):
        shared += tree(z - shared)
    theta, first = np.full(6, -np.log(9.0)), -np.log(9.0)
    outliers, others = np.zeros(300), np.zeros(300)
    for _ in range(3):
        s = 1 / (1 + np.exp(-theta[tasks]))
        left = z - shared - s * outliers - (1 - s) * others
        outliers, others = outliers + tree(s * left), others + tree((1 - s) * left)
        left = z - shared - s * outliers - (1 - s) * others
        for task in range(6):
            mine = tasks == task
            down = np.mean((left * (outliers - others) * s * (1 - s))[mine])
            theta[task] += 20.0 * (down - 0.05 * (theta[task] - first))
    s = 1 / (1 + np.exp(-theta))
    fewer_lean_to_the_first = sum(s > (min(s) + max(s)) / 2) <= 3
    np.testing.assert_allclose(model.outlier_weights_, s if fewer_lean_to_the_first else 1 - s, rtol=1e-9)
    raw = shared + s[tasks] * outliers + (1 - s[tasks]) * others
    stages = list(model.staged_predict(X))
    assert len(stages) == 3
    np.testing.assert_allclose(stages[0], raw * y.std() + y.mean(), rtol=1e-9, atol=1e-9)
    for task in range(6):
        mine = tasks == task
        for _ in range(2):
            own = DecisionTreeRegressor(max_depth=3, random_state=0).fit(x[mine], (z - raw)[mine])
            raw[mine] += 0.3 * own.predict(x[mine])
    np.testing.assert_allclose(stages[2], raw * y.std() + y.mean(), rtol=1e-9, atol=1e-9)
    np.testing.assert_array_equal(model.predict(X), stages[2])


def test_the_shared_block_alone_is_gradient_boosting() -> None:
    X, y, _ = outlying(400)
    alone = {"shared_trees": 15, "partition_trees": 0, "task_trees": 0}
    ours = RobustBoostingRegressor(**alone).fit(X, y)
    theirs = GradientBoostingRegressor(n_estimators=15, random_state=0).fit(X, y)
    np.testing.assert_allclose(ours.predict(X), theirs.predict(X), rtol=1e-6)
    label = (y > 0.3).astype(int)
    ours = RobustBoostingClassifier(**alone).fit(X, label)
    theirs = GradientBoostingClassifier(n_estimators=15, random_state=0).fit(X, label)
    np.testing.assert_allclose(ours.predict_proba(X), theirs.predict_proba(X), rtol=1e-6)


def test_the_leaves_for_several_classes_are_friedmans() -> None:
    """One tree for all three scores: a leaf gives 2/3 sum(y - p) / sum(p (1 - p)) for each, p the classes' shares."""
    X, y, _ = outlying(300)
    labels = np.digitize(y, [-0.3, 0.5])
    model = RobustBoostingClassifier(shared_trees=1, partition_trees=0, task_trees=0, learning_rate=1.0).fit(X, labels)
    one_hot = np.eye(3)[labels]
    share = one_hot.mean(0)
    splits = DecisionTreeRegressor(max_depth=3, random_state=0).fit(X.astype(np.float32), one_hot - share)
    leaves, expected = splits.apply(X), np.empty((300, 3))
    for leaf in np.unique(leaves):
        there = leaves == leaf
        expected[there] = np.log(share) + 2 / 3 * (one_hot - share)[there].mean(0) / (share * (1 - share))
    np.testing.assert_allclose(model.decision_function(X), expected, rtol=1e-9)
    np.testing.assert_allclose(model.predict_proba(X).sum(1), 1)


def test_a_classifier_finds_outliers_too() -> None:
    X, y, _ = outlying()
    settings = {"task": 0, "shared_trees": 20, "partition_trees": 60, "task_trees": 0}
    for labels in (y > 0, np.digitize(y, [-0.5, 0.5])):
        model = RobustBoostingClassifier(**settings).fit(X, labels)
        order = np.argsort(model.outlier_weights_)
        assert set(model.tasks_[order[-2:]]) == {20, 50}


def test_the_scale_of_labels_changes_only_the_scale_of_predictions() -> None:
    X, y, _ = outlying(300)
    model = RobustBoostingRegressor(task=0, **FEW).fit(X, y)
    scaled = clone(model).fit(X, 1000 * y + 7)
    np.testing.assert_allclose(scaled.predict(X), 1000 * model.predict(X) + 7, rtol=1e-6)


def test_the_task_may_be_a_named_column() -> None:
    import polars as pl

    X, y, _ = outlying(300)
    frame = pl.DataFrame(X[:, [1, 2, 0, 3, 4]], schema=["a", "b", "school", "c", "d"])
    by_name = RobustBoostingRegressor(task="school", **FEW).fit(frame, y)
    by_number = RobustBoostingRegressor(task=0, **FEW).fit(X, y)
    np.testing.assert_array_equal(by_name.predict(frame), by_number.predict(X))
    with pytest.raises(UnknownName, match=r"task: no column 'schol' \(did you mean 'school'"):
        clone(by_name).set_params(task="schol").fit(frame, y)


def test_a_seed_gives_the_same_bits() -> None:
    X, y, _ = outlying(300)
    one, other = (RobustBoostingRegressor(task=0, **FEW).fit(X, y).predict(X) for _ in range(2))
    assert np.array_equal(one, other)


def test_a_task_that_was_not_there_in_training() -> None:
    X, y, _ = outlying(100)
    model = RobustBoostingRegressor(task=0, **FEW).fit(X, y)
    X[3, 0] = 55
    with pytest.raises(UnknownName, match=r"predict: no task '55.0' \(did you mean '5.?0.0'"):
        model.predict(X)


@pytest.mark.parametrize(
    "options, said",
    [
        ({"shared_trees": -1}, "shared_trees is -1; allowed: an int, at least 0"),
        ({"max_depth": 0}, "max_depth is 0; allowed: an int, at least 1"),
        ({"task_trees": 2.5}, "task_trees is 2.5; allowed: an int"),
        ({"learning_rate": 0.0}, r"learning_rate is 0.0; allowed: a number in \(0, 1\]"),
        ({"start": 0.5}, r"start is 0.5; allowed: a number in \(0, 0.5\)"),
        ({"weight_rate": -1.0}, "weight_rate is -1.0; allowed: a number in"),
        ({"penalty": float("nan")}, "penalty is nan; allowed: a number in"),
        ({"task": 5}, "task is 5; allowed: a column's name or its number, 0 to 4, or None"),
        ({"task": True}, "task is True; allowed"),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_bad_parameters(kind: type, options: dict[str, object], said: str) -> None:
    X, y, _ = outlying(50)
    with pytest.raises(BadValue, match=said):
        kind(**options).fit(X, y > 0)


def test_nothing_beside_the_task() -> None:
    X, y, _ = outlying(50)
    with pytest.raises(BadValue, match="the columns of X is 1; allowed: the task's and at least one more"):
        RobustBoostingRegressor(task=0).fit(X[:, :1], y)


def test_it_is_there_as_a_part_of_polytask() -> None:
    assert polytask.boosting.RobustBoostingRegressor is RobustBoostingRegressor
