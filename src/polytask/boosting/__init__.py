"""Many tasks without gradients of a network: boosted trees as scikit-learn estimators, the task being a column."""

from polytask.boosting.robust import RobustBoostingClassifier, RobustBoostingRegressor

__all__ = ["RobustBoostingClassifier", "RobustBoostingRegressor"]
