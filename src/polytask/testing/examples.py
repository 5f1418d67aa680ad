"""Hard inputs for rules: small sets of task vectors, each built so that what is true of it is known."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from polytask.core.noise import Noise


@dataclass(frozen=True)
class Example:
    """One step's input.

    Attributes:
        name: how it was built, for messages.
        vectors: float64 [T, P].
        losses: float64 [T], positive.
        stationary: "strongly" (a combination with positive weights vanishes), "weakly" (only one in which some weights
            are 0), "no" (there is a direction that improves every task), or "unknown".
    """

    name: str
    vectors: Float[Tensor, "T P"]
    losses: Float[Tensor, "T"]
    stationary: str = "unknown"

    @property
    def tasks(self) -> list[str]:
        return [f"task{i}" for i in range(len(self.vectors))]

    @property
    def size(self) -> float:
        """Length of the longest vector."""
        return float(self.vectors.norm(dim=1).max())


SHAPES = [(1, 1), (1, 5), (1, 40), (2, 1), (2, 2), (2, 7), (3, 2), (3, 5), (4, 30), (5, 3), (8, 4), (9, 11)]
SCALES = [1e-15, 1e-10, 1e5, 1e15]


@cache
def examples() -> tuple[Example, ...]:
    """All of them, the same in every call."""
    return tuple(
        Example(name, torch.from_numpy(X), _losses(len(X), name), stationary) for name, X, stationary in _built()
    )


def _losses(tasks: int, name: str) -> Tensor:
    return torch.from_numpy(10.0 ** (2 * Noise(1, name).uniform(tasks) - 1))


def _random(tasks: int, size: int, *keys: int | str) -> np.ndarray:
    return Noise(0, tasks, size, *keys).normal(tasks * size).reshape(tasks, size)


def _built() -> Iterator[tuple[str, np.ndarray, str]]:
    yield "two tasks in conflict", np.array([[-4.0, 1, 1], [6, 1, 1]]), "no"
    yield "opposite signs with a common descent", np.array([[1.0, -0.5], [-0.5, 1.0]]), "no"
    yield "opposite of one another", np.array([[1.0, 2, 0], [-1.0, -2, 0]]), "strongly"
    yield "opposite, other lengths", np.array([[1.0, 2, 0], [-3.0, -6, 0]]), "strongly"
    yield "nearly opposite", np.array([[1.0, 0, 0], [-1.0, 1e-3, 0], [0.3, 0.2, 1]]), "no"
    for tasks, size in SHAPES:
        shape = f"{tasks} x {size}"
        X = _random(tasks, size)
        yield f"random {shape}", X, "unknown"
        yield f"zero {shape}", np.zeros_like(X), "strongly"
        yield f"common descent {shape}", _with_common_descent(X), "no"
        if tasks > 1:
            yield f"identical {shape}", np.repeat(X[:1], tasks, axis=0), "no"
            yield f"one zero task {shape}", _with_common_descent(X) * (np.arange(tasks) > 0)[:, None], "weakly"
            yield f"strongly stationary {shape}", _strongly_stationary(X), "strongly"
        if tasks > 2 and size > 2:
            yield f"rank 2 {shape}", _random(tasks, 2, "left") @ _random(2, size, "right"), "unknown"
            yield f"weakly stationary {shape}", _weakly_stationary(tasks, size), "weakly"
    for tasks, size in ((3, 8), (6, 20)):
        X, lengths = _random(tasks, size, "lengths"), 10.0 ** -np.linspace(0, 6, tasks)[:, None]
        yield f"lengths up to 1e6 apart {tasks} x {size}", X * lengths, "unknown"
        yield f"common descent, lengths up to 1e6 apart {tasks} x {size}", _with_common_descent(X) * lengths, "no"
    for scale in SCALES:
        yield f"random at scale {scale:g}", _random(4, 6, "scaled") * scale, "unknown"
        yield f"strongly stationary at scale {scale:g}", _strongly_stationary(_random(3, 6)) * scale, "strongly"
        yield f"common descent at scale {scale:g}", _with_common_descent(_random(3, 6)) * scale, "no"


def _with_common_descent(X: np.ndarray) -> np.ndarray:
    """Vectors on one side of the first axis, in conflict with one another all the same where there is room."""
    X = X.copy()
    X[:, 0] = 0.2 * np.linalg.norm(X, axis=1)
    return X


def _strongly_stationary(X: np.ndarray) -> np.ndarray:
    weights = 0.5 + Noise(2, *X.shape).uniform(len(X) - 1)
    return np.vstack([X[:-1], -weights @ X[:-1]])


def _weakly_stationary(tasks: int, size: int) -> np.ndarray:
    """The first two tasks cancel; the others agree with a direction that the first two do not see."""
    X = _with_common_descent(_random(tasks, size, "weakly"))
    X[:2, 0] = 0.0
    X[1] = -2 * X[0]
    return X
