"""The Gram rules against references that see the vectors themselves, on hard Gram matrices.

A reference is the paper's formula in dense linear algebra, or a solver of scipy's. A Gram matrix is rounded to eps, so
the length of a combination is known to sqrt(eps) times its terms: differences are measured against 1e-6 of the terms.
"""

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import nnls

from hard_vectors import KINDS, vectors
from polytask.core.noise import Noise
from polytask.core.state import Rule

DRAWS = 100  # of each kind: over a thousand matrices a rule
INDEPENDENT = ["random", "norms_1e6", "tiny", "huge", "common_descent"]


def update(name: str, X: np.ndarray, **options: Any) -> tuple[np.ndarray, np.ndarray]:
    """(the rule's weights, its update)."""
    tasks = [f"task{i}" for i in range(len(X))]
    weights = Rule(name, tasks, **options)(tasks, torch.from_numpy(X @ X.T)).numpy()
    return weights, weights @ X


def units(X: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(X, axis=1, keepdims=True)
    return X / np.where(norms > 0, norms, 1.0)


def assert_close(found: np.ndarray, wanted: np.ndarray, weights: np.ndarray, X: np.ndarray, place: str) -> None:
    """Within 1e-6 of the result's length, or of what rounding the Gram matrix does to its terms."""
    terms = float(np.abs(weights) @ np.linalg.norm(X, axis=1))
    tolerance = max(1e-6 * float(np.linalg.norm(wanted)), 3e-8 * terms)
    assert float(np.linalg.norm(found - wanted)) <= tolerance, place


@pytest.mark.parametrize("kind", KINDS)
def test_dualproj(kind: str) -> None:
    """The projection of the mean onto {d: X d >= 0} is mean + U^T s, s >= 0 making it shortest (Moreau)."""
    for draw in range(DRAWS):
        X = vectors(kind, draw)
        weights, found = update("dualproj", X)
        size = np.linalg.norm(X, axis=1).max() or 1.0
        s, _ = nnls(units(X).T, -X.mean(0) / size, maxiter=1000)
        assert_close(found / size, X.mean(0) / size + s @ units(X), weights, X / size, f"draw {draw}")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("c", [0.2, 0.5, 0.9, 2.0])
def test_cagrad_meets_its_dual_bound(kind: str, c: float) -> None:
    """No d in the ball can do better than g_w . mean + c |mean| |g_w| for any convex w: the weights' own w shows it."""
    for draw in range(0, DRAWS, 2):
        X = vectors(kind, draw)
        mean, norms = X.mean(0), np.linalg.norm(X, axis=1)
        radius = c * float(np.linalg.norm(mean))
        if radius <= 1e-7 * norms.max():
            continue  # the ball is a point, and its radius is rounding
        weights, found = update("cagrad", X, c=c)
        extra = weights - 1 / len(X)
        assert (extra >= 0).all()
        rounding = 3e-8 * float(weights @ norms)
        assert np.linalg.norm(found - mean) <= radius + rounding, f"draw {draw}: outside of the ball"
        gains = (units(X) @ found)[norms > 0].min(initial=np.inf)
        if np.linalg.norm(found - mean) < radius - rounding:  # shorter than allowed: nobody is harmed, nobody can gain
            assert gains >= -rounding
            assert hull_distance(X / norms.max()) < 1e-7
            assert_close(found, update("dualproj", X)[1], weights, X, f"draw {draw}")
            continue
        w = extra / extra.sum()
        bound = float(w @ X @ mean) + radius * float(np.linalg.norm(w @ X))
        assert (X @ found).min() >= bound - 1e-8 * radius * float(w @ norms), f"draw {draw}: not the best"


@pytest.mark.parametrize("kind", ["random", "norms_1e6", "tiny", "huge", "duplicates", "a_zero_vector"])
@pytest.mark.parametrize("c", [0.2, 0.5, 0.9, 2.0])
def test_cagrad(kind: str, c: float) -> None:
    for draw in range(0, DRAWS, 2):
        X = vectors(kind, draw)
        mean, norms = X.mean(0), np.linalg.norm(X, axis=1)
        length = float(np.linalg.norm(mean))
        if length <= 1e-7 * norms.max() or hull_distance(units(X)[norms > 0]) < 1e-4:
            continue
        weights, found = update("cagrad", X, c=c)
        wanted = mean + length * best_in_ball(units(X), norms, units(X) @ mean / length, c)
        assert_close(found, wanted, weights, X, f"draw {draw}")


def best_in_ball(unit: np.ndarray, norms: np.ndarray, inner: np.ndarray, radius: float) -> np.ndarray:
    """The shortest of the u, |u| <= radius, that maximise min_t norms_t (u_t . u + inner_t): bisection on that minimum.

    The shortest u that reaches a given value is a least-distance program, which Lawson and Hanson (chapter 23) solve by
    non-negative least squares.
    """
    norms = norms / norms[norms > 0].min()

    def shortest(value: float) -> np.ndarray | None:
        rows, right = unit[norms > 0], value / norms[norms > 0] - inner[norms > 0]
        if value > 0 and (norms == 0).any():
            return None
        target = np.append(np.zeros(unit.shape[1]), 1.0)
        y, distance = nnls(np.vstack([rows.T, right]), target, maxiter=10000)
        residual = np.vstack([rows.T, right]) @ y - target
        return None if distance < 1e-7 else -residual[:-1] / residual[-1]

    low, high = float((inner * norms).min()), float(((inner + radius) * norms).min())
    zero = shortest(0.0)
    assert zero is not None
    if np.linalg.norm(zero) <= radius:  # the bracket starts where nobody is harmed, exactly
        low = 0.0
    best = zero if low == 0.0 else np.zeros(unit.shape[1])
    for _ in range(60):
        middle = (low + high) / 2
        u = shortest(middle)
        if u is None or np.linalg.norm(u) > radius:
            high = middle
        else:
            low, best = middle, u
    return best


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0, 10.0])
@pytest.mark.parametrize("kind", KINDS)
def test_fairgrad_and_nash_mtl(kind: str, alpha: float) -> None:
    """Its equation on the vectors, where a bargain exists: the unit gradients' convex hull keeps away from 0."""
    solved = 0
    for draw in range(DRAWS):
        X = vectors(kind, draw)
        weights, found = update("fairgrad", X, alpha=alpha)
        norms = np.linalg.norm(X, axis=1)
        here = norms > 0
        if not here.any():
            continue
        distance = hull_distance(units(X)[here])
        if distance < 1e-8:
            assert (weights == 0).all(), f"draw {draw}: a bargain where there is none"
        elif distance > 1e-4:
            solved += 1
            gains = X[here] @ found
            error = np.abs(gains * weights[here] ** (1 / alpha) - 1).max()
            assert error <= 1e-6, f"draw {draw}: missed by {error:.2g}"
            assert (weights[~here] == 0).all()
        if alpha == 1.0:
            np.testing.assert_array_equal(update("nash_mtl", X)[0], weights)
    assert solved or kind in ("few_dimensions", "stationary")


def hull_distance(U: np.ndarray) -> float:
    """Length of the shortest convex combination."""
    y, _ = nnls(np.vstack([U.T, np.ones(len(U))]), np.append(np.zeros(U.shape[1]), 1.0), maxiter=10000)
    return float(np.linalg.norm(y / y.sum() @ U))


@pytest.mark.parametrize("kind", KINDS)
def test_config(kind: str) -> None:
    """The paper's formula with the pseudo-inverse of the unit gradients themselves."""
    for draw in range(DRAWS):
        X = vectors(kind, draw)
        weights, found = update("config", X)
        direction = np.linalg.pinv(units(X), rcond=1e-6) @ (np.linalg.norm(X, axis=1) > 0)
        length = float(np.linalg.norm(direction))
        if length < 1e-7:
            assert (weights == 0).all()
            continue
        direction /= length
        assert_close(found, float((X @ direction).sum()) * direction, weights, X, f"draw {draw}")


@pytest.mark.parametrize("kind", KINDS)
def test_imtl_g(kind: str) -> None:
    """Equal projections and a sum of 1; where they are independent, the paper's formula with differences."""
    for draw in range(DRAWS):
        X = vectors(kind, draw)
        weights, found = update("imtl_g", X)
        norms = np.linalg.norm(X, axis=1)
        if (weights == 0).all():
            continue
        assert weights.sum() == pytest.approx(1.0)
        projections = units(X)[norms > 0] @ found
        assert np.ptp(projections) <= 1e-6 * float(np.abs(weights) @ norms), f"draw {draw}"
        if kind in INDEPENDENT and 1 < len(X) <= X.shape[1]:
            differences, U = X[0] - X[1:], units(X)
            a = np.linalg.solve((differences @ (U[0] - U[1:]).T).T, (U[0] - U[1:]) @ X[0])
            assert_close(found, np.append(1 - a.sum(), a) @ X, weights, X, f"draw {draw}")


@pytest.mark.parametrize("kind", KINDS)
def test_aligned_mtl(kind: str) -> None:
    """Algorithm 1 through the singular value decomposition of the gradients themselves."""
    for draw in range(DRAWS):
        X = vectors(kind, draw)
        weights, found = update("aligned_mtl", X)
        rank = np.linalg.matrix_rank(units(X), tol=1e-6)
        if rank == 0:
            continue
        left, singular, right = np.linalg.svd(X, full_matrices=False)
        wanted = singular[rank - 1] * np.full(len(X), 1 / len(X)) @ left[:, :rank] @ right[:rank]
        assert_close(found, wanted, weights, X, f"draw {draw}")


@pytest.mark.parametrize("kind", KINDS)
def test_gradvac(kind: str) -> None:
    """Algorithm 1 as printed, on vectors, over three steps."""
    beta = 0.3
    for draw in range(0, DRAWS, 3):
        X = vectors(kind, draw)
        if kind in ("few_dimensions", "low_rank", "stationary", "nearly_opposite") or X.shape[1] < 2:
            continue  # a gradient that is turned to (nearly) zero has a direction that is rounding
        tasks = [f"task{i}" for i in range(len(X))]
        rule, average = Rule("gradvac", tasks, beta=beta), np.zeros((len(X), len(X)))
        for step in range(3):
            Y = X + 0.3 * np.roll(X, step, axis=1)
            weights = rule(tasks, torch.from_numpy(Y @ Y.T)).numpy()
            rule.advance()
            keys = Noise(0, "rule", "gradvac", step).raw(len(X) ** 2).reshape(len(X), len(X))
            wanted = np.sum([turned(Y, i, keys[i], average, beta) for i in range(len(Y))], axis=0)
            assert_close(weights @ Y, wanted, weights, Y, f"draw {draw}, step {step}")


def turned(X: np.ndarray, i: int, keys: np.ndarray, average: np.ndarray, beta: float) -> np.ndarray:
    g = X[i].copy()
    for j in sorted((j for j in range(len(X)) if j != i), key=lambda j: int(keys[j])):
        if not g.any() or not X[j].any():
            continue
        length, other = np.linalg.norm(g), np.linalg.norm(X[j])
        phi, goal = float(g @ X[j] / length / other), average[i, j]
        if phi < goal:
            root = math.sqrt(1 - goal**2)
            g = g + length * (goal * math.sqrt(max(0.0, 1 - phi**2)) - phi * root) / (other * root) * X[j]
        average[i, j] = (1 - beta) * goal + beta * phi
    return g


@pytest.mark.parametrize("kind", KINDS)
def test_krum(kind: str) -> None:
    """The chosen one's score, by distances between the vectors, is the lowest."""
    for draw in range(DRAWS):
        X = vectors(kind, draw)
        if len(X) < 2:
            continue
        weights, _ = update("krum", X)
        squares = np.sort(((X[:, None] - X) ** 2).sum(-1), axis=1)[:, 1 : 1 + max(1, len(X) - 2)].sum(1)
        tolerance = 1e-12 * float((X**2).sum(1).max())
        assert squares[weights.argmax()] <= squares.min() + tolerance, f"draw {draw}"
