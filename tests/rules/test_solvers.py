"""The two projections against a reference solver that sees the vectors themselves, on hard Gram matrices."""

import numpy as np
import pytest
import torch
from scipy.optimize import nnls

from hard_vectors import KINDS, vectors
from polytask.core.geometry import dual_cone_weights, min_norm_point

DRAWS = 95  # of each kind: more than a thousand matrices


def gram(X: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(X @ X.T)


@pytest.mark.parametrize("kind", KINDS)
def test_dual_cone_weights(kind: str) -> None:
    """The projection of g onto {d: X d >= 0} is g + X^T s for the s >= 0 that makes it shortest (Moreau)."""
    for draw in range(DRAWS):
        X = vectors(kind, draw)
        norms = np.linalg.norm(X, axis=1)
        unit = X / np.where(norms > 0, norms, 1.0)[:, None]
        found = dual_cone_weights(gram(X), torch.eye(len(X), dtype=torch.float64)).numpy()
        assert (found >= np.eye(len(X))).all()
        for row, v in enumerate(found):
            if norms[row] == 0:
                continue
            s, _ = nnls(unit.T, -unit[row], maxiter=1000)
            reference = unit[row] + unit.T @ s
            # G is rounded to eps, so the length of v @ X is known to sqrt(eps) |v| only: what counts when vectors
            # nearly cancel
            tolerance = max(1e-6, 2 * np.sqrt(np.finfo(float).eps) * np.abs(v * norms / norms[row]).sum())
            place = f"draw {draw}, task {row}"
            np.testing.assert_allclose(v @ X / norms[row], reference, rtol=0, atol=tolerance, err_msg=place)
            if kind != "nearly_opposite":
                assert tolerance < 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_min_norm_point(kind: str) -> None:
    """Against the same program on the vectors; lengths are relative to the shortest one."""
    for draw in range(DRAWS):
        X = vectors(kind, draw)
        weights = min_norm_point(gram(X)).numpy()
        assert (weights >= 0).all()
        assert weights.sum() == pytest.approx(1.0)
        shortest = np.linalg.norm(X, axis=1).min()
        if shortest == 0:
            assert np.linalg.norm(weights @ X) == 0
            continue
        X = X / shortest
        reference = dense_min_norm_point(X)
        np.testing.assert_allclose(weights @ X, reference, rtol=0, atol=1e-6, err_msg=f"draw {draw}")


def dense_min_norm_point(X: np.ndarray) -> np.ndarray:
    """min |a X| over convex a, by non-negative least squares: min |y X|^2 + (1 - sum y)^2 has the same proportions."""
    tasks = len(X)
    y, _ = nnls(np.vstack([X.T, np.ones(tasks)]), np.append(np.zeros(X.shape[1]), 1.0), maxiter=1000)
    return y / y.sum() @ X


def many(kind: str) -> np.ndarray:
    """100 unit vectors."""
    random = np.random.default_rng(2)
    if kind == "thin cone":  # the directions that conflict with none are a sliver
        X = np.random.default_rng(7).standard_normal((100, 50))
    elif kind == "thinner cone":
        X = np.random.default_rng(8).standard_normal((100, 50))
    elif kind == "few dimensions":
        X = np.abs(random.standard_normal((100, 5))) - [0.8, 0, 0, 0, 0]
    elif kind == "nearly opposite":
        X = random.standard_normal((50, 300))
        X = np.concatenate([X, -X + 1e-3 * random.standard_normal(X.shape)])
    elif kind == "duplicates":
        X = random.standard_normal((30, 300))[random.integers(0, 30, 100)]
    elif kind == "nearly equal":
        X = random.standard_normal((1, 300)) + 1e-6 * random.standard_normal((100, 300))
    else:
        size, shift = map(float, kind.split(" less "))
        X = random.standard_normal((100, int(size)))
        X -= shift * X.mean(0)
    return X / np.linalg.norm(X, axis=1, keepdims=True)


MANY = [f"{size} less {shift}" for size in (1, 10, 60, 101, 300) for shift in (0.0, 0.9)]
MANY += ["thin cone", "thinner cone", "few dimensions", "nearly opposite", "duplicates", "nearly equal"]


@pytest.mark.parametrize("kind", MANY)
def test_many_tasks(kind: str) -> None:
    """Fewer dimensions than tasks too, where most projections are 0 or nearly."""
    X = many(kind)
    updates = dual_cone_weights(gram(X), torch.eye(100, dtype=torch.float64)).numpy() @ X
    assert (updates @ X.T).min() > -1e-6
    for task in range(0, 100, 20):
        s, _ = nnls(X.T, -X[task], maxiter=1000)
        np.testing.assert_allclose(updates[task], X[task] + X.T @ s, rtol=0, atol=1e-6)
    for spread in (1.0, 1e6):
        Y = X * np.logspace(0, np.log10(spread), 100)[:, None]  # the shortest has length 1
        found = min_norm_point(gram(Y)).numpy() @ Y
        np.testing.assert_allclose(found, dense_min_norm_point(Y), rtol=0, atol=1e-6)
