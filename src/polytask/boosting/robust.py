"""Robust multi-task gradient boosting: shared trees, trees for outlying tasks apart from the others', a task's own."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_array, check_is_fitted, validate_data

from polytask.boosting.blocks import Settings, fit_ensemble
from polytask.boosting.losses import LogLoss, Loss, SquaredError
from polytask.boosting.trees import Growth
from polytask.core.constraints import Interval
from polytask.core.errors import BadValue, UnknownName
from polytask.core.noise import Noise

_COUNTS = {"shared_trees": 0, "partition_trees": 0, "task_trees": 0, "max_depth": 1, "min_samples_leaf": 1, "seed": 0}
_NUMBERS = {
    "learning_rate": Interval(0, 1, open="left"),
    "start": Interval(0, 0.5, open="both"),
    "weight_rate": Interval(0),
    "penalty": Interval(0),
}


class _RobustBoosting(BaseEstimator):
    """What the regressor and the classifier have in common: see them."""

    def __init__(
        self,
        *,
        task: int | str | None = None,
        shared_trees: int = 100,
        partition_trees: int = 50,
        task_trees: int = 50,
        learning_rate: float = 0.1,
        max_depth: int = 3,
        min_samples_leaf: int = 1,
        start: float = 0.4,
        weight_rate: float = 20.0,
        penalty: float = 0.0,
        seed: int = 0,
    ) -> None:
        self.task = task
        self.shared_trees = shared_trees
        self.partition_trees = partition_trees
        self.task_trees = task_trees
        self.learning_rate = learning_rate
        self.max_depth = max_depth
        self.min_samples_leaf = min_samples_leaf
        self.start = start
        self.weight_rate = weight_rate
        self.penalty = penalty
        self.seed = seed

    def _fit(self, X: np.ndarray, y: np.ndarray, loss: Loss) -> None:
        """X as validated, y [n, K]."""
        self._check()
        self.task_column_ = self._column(X)
        rows, of = self._rows(X)
        self.tasks_ = np.unique(of)
        settings = Settings(
            self.shared_trees,
            self.partition_trees,
            self.task_trees,
            self.learning_rate,
            Growth(self.max_depth, self.min_samples_leaf),
            self.start,
            self.weight_rate,
            self.penalty,
        )
        noise = Noise(int(self.seed), "robust boosting")
        self._ensemble = fit_ensemble(rows, y, np.searchsorted(self.tasks_, of), loss, settings, noise)
        self.outlier_weights_ = self._ensemble.weights

    def _stages(self, X: Any) -> Iterator[np.ndarray]:
        """Raw scores [n, K] with 0, 1, ... of each task's own trees."""
        check_is_fitted(self)
        rows, of = self._rows(validate_data(self, X, reset=False, dtype=np.float64))
        known = np.isin(of, self.tasks_)
        if not known.all():
            raise UnknownName("task", of[~known][0].item(), self.tasks_.tolist(), "predict")
        return self._ensemble.stages(rows, np.searchsorted(self.tasks_, of))

    def _raw(self, X: Any) -> np.ndarray:
        *_, last = self._stages(X)
        return last

    def _check(self) -> None:
        for name, least in _COUNTS.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
                raise BadValue(name, value, f"an int, at least {least}")
        for name, interval in _NUMBERS.items():
            value = getattr(self, name)
            if not interval.allows(value):
                raise BadValue(name, value, str(interval))

    def _column(self, X: np.ndarray) -> int | None:
        """Where in X the tasks are."""
        if self.task is None:
            return None
        if isinstance(self.task, str):
            names = list(getattr(self, "feature_names_in_", []))
            if self.task not in names:
                raise UnknownName("column", self.task, names, "task")
            found = names.index(self.task)
        else:
            found = self.task
        if isinstance(found, bool) or not isinstance(found, int | np.integer) or not 0 <= found < X.shape[1]:
            raise BadValue("task", self.task, f"a column's name or its number, 0 to {X.shape[1] - 1}, or None")
        if X.shape[1] == 1:
            raise BadValue("the columns of X", 1, "the task's and at least one more")
        return int(found)

    def _rows(self, X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(float32 [n, d] features, [n] each row's task)."""
        if self.task_column_ is None:
            return check_array(X, dtype=np.float32, order="C"), np.zeros(len(X))
        features = np.delete(X, self.task_column_, axis=1)
        return check_array(features, dtype=np.float32, order="C"), X[:, self.task_column_]


class RobustBoostingRegressor(RegressorMixin, _RobustBoosting):
    """Gradient boosting of many regression tasks that share features, robust to tasks that are unlike the others.

    Three blocks of trees, each on what those before leave: trees that all tasks share; two ensembles of which task t
    takes the first, for outliers, with weight s_t = sigmoid(theta_t) and the second with 1 - s_t, theta_t being learnt
    by gradient descent; and trees of each task's own.

    Source: Emami, Martinez-Munoz and Hernandez-Lobato 2025, arXiv:2507.11411 (R-MTGB): the three blocks and the second
    one's sigmoid weights.
    Departures: the paper's text was to be had in parts only, so what follows is ours: all theta start at logit(start),
    and a start below 1/2 is what tells the two ensembles apart at first; each one's tree is fitted to its own negative
    slope, s_t or 1 - s_t times the loss's; theta_t follows the mean slope over the task's rows, with a penalty towards
    its start; the ensemble to which fewer tasks lean is called the outliers' in the end; labels of a regression are
    scaled to unit variance first.
    Cost: of `shared_trees` + 2 `partition_trees` trees on all rows, and `task_trees` on each task's.

    Args:
        task: the column of X, by name or number, that says which task a row belongs to (numbers); None is one task.
        shared_trees, partition_trees, task_trees: how many, the second for each ensemble, the third for each task.
        learning_rate: what a tree's output is multiplied by.
        max_depth, min_samples_leaf: of a tree.
        start: every s_t at the start, below 1/2.
        weight_rate: the step of theta.
        penalty: factor of (theta_t - its start)^2 / 2.
        seed: decides between equally good splits.

    Attributes:
        tasks_: the tasks, ascending.
        outlier_weights_: [T], s_t; near 1 for an outlier.

    Raises:
        BadValue: for a parameter outside its range.
        UnknownName: for a task that was not there in training.
    """

    def fit(self, X: Any, y: Any) -> "RobustBoostingRegressor":
        """X [n, d], y [n]."""
        X, y = validate_data(self, X, y, dtype=np.float64, y_numeric=True)
        y = np.asarray(y, dtype=np.float64)
        self._mean, self._scale = y.mean(), y.std() or 1.0
        self._fit(X, ((y - self._mean) / self._scale)[:, None], SquaredError())
        return self

    def predict(self, X: Any) -> np.ndarray:
        """[n]."""
        return self._raw(X)[:, 0] * self._scale + self._mean

    def staged_predict(self, X: Any) -> Iterator[np.ndarray]:
        """[n] with 0, 1, ..., `task_trees` of each task's own trees."""
        for raw in self._stages(X):
            yield raw[:, 0] * self._scale + self._mean


class RobustBoostingClassifier(ClassifierMixin, _RobustBoosting):
    """The same for classes, by the log loss; all tasks have the same classes. See `RobustBoostingRegressor`.

    Attributes:
        classes_: ascending.
    """

    def fit(self, X: Any, y: Any) -> "RobustBoostingClassifier":
        """X [n, d], y [n]."""
        X, y = validate_data(self, X, y, dtype=np.float64)
        check_classification_targets(y)
        self.classes_, found = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise BadValue(
                "the classes of y",
                self.classes_.tolist(),
                "at least two: with one class there is nothing to tell apart",
            )
        one_hot = np.eye(len(self.classes_))[found]
        self._fit(X, one_hot[:, 1:] if len(self.classes_) == 2 else one_hot, LogLoss())
        return self

    def decision_function(self, X: Any) -> np.ndarray:
        """[n] for two classes, else [n, classes]: scores before the sigmoid or softmax."""
        raw = self._raw(X)
        return raw[:, 0] if raw.shape[1] == 1 else raw

    def predict_proba(self, X: Any) -> np.ndarray:
        """[n, classes]."""
        share = LogLoss.shares(self._raw(X))
        return np.hstack([1 - share, share]) if share.shape[1] == 1 else share

    def predict(self, X: Any) -> np.ndarray:
        """[n] classes."""
        return self._named(self._raw(X))

    def staged_predict(self, X: Any) -> Iterator[np.ndarray]:
        """[n] with 0, 1, ..., `task_trees` of each task's own trees."""
        for raw in self._stages(X):
            yield self._named(raw)

    def _named(self, raw: np.ndarray) -> np.ndarray:
        return self.classes_[(raw[:, 0] > 0).astype(int) if raw.shape[1] == 1 else raw.argmax(1)]
