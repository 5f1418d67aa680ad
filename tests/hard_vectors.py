"""Task vectors on which a solver may fail, drawn from a seed: what the tests of rules and projections share."""

import numpy as np


def vectors(kind: str, draw: int) -> np.ndarray:
    """[T, P] task vectors of one kind."""
    random = np.random.default_rng([draw, len(kind)])
    tasks, size = int(random.integers(1, 11)), int(random.integers(1, 14))
    X = random.standard_normal((tasks, size))
    if kind == "few_dimensions":
        X = X[:, : max(1, tasks // 2)]
    elif kind == "low_rank":
        rank = max(1, min(tasks, size) - 1)
        X = random.standard_normal((tasks, rank)) @ random.standard_normal((rank, size))
    elif kind == "norms_1e6":
        X *= 10.0 ** random.uniform(-6, 0, size=(tasks, 1))
    elif kind == "tiny":
        X *= 1e-15
    elif kind == "huge":
        X *= 1e15
    elif kind == "duplicates":
        X = X[random.integers(0, tasks, size=tasks)]
    elif kind == "common_descent":  # no two tasks conflict
        X = np.abs(X)
    elif kind == "stationary" and tasks > 1:  # a combination with positive weights vanishes
        weights = random.uniform(0.1, 1.0, tasks - 1)
        X[-1] = -weights @ X[:-1]
    elif kind == "a_zero_vector":
        X[int(random.integers(tasks))] = 0.0
    elif kind == "nearly_opposite" and tasks > 1:
        X[1] = -X[0] + 1e-4 * np.linalg.norm(X[0]) * random.standard_normal(X.shape[1]) / np.sqrt(X.shape[1])
    return X


KINDS = [
    "random", "few_dimensions", "low_rank", "norms_1e6", "tiny", "huge", "duplicates", "common_descent", "stationary",
    "a_zero_vector", "nearly_opposite",
]  # fmt: skip
