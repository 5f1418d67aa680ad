"""Worked values of the rules that see the Gram matrix: from the papers' formulas or by hand."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from polytask.core.errors import BadValue, NotFinite
from polytask.core.noise import Noise
from polytask.core.state import Rule

J = torch.tensor([[-4.0, 1, 1], [6, 1, 1]], dtype=torch.float64)  # G = [[18, -22], [-22, 38]]
A, B, C = 18.0, -22.0, 38.0
NORM_A, NORM_C = math.sqrt(A), math.sqrt(C)

# Nash-MTL: a (A a + B b) = 1 and b (B a + C b) = 1 give A a^2 = C b^2, so b = r a with r = sqrt(A / C).
RATIO = math.sqrt(A / C)
NASH = 1 / math.sqrt(A + B * RATIO)

# Aligned-MTL: sqrt(smallest eigenvalue) G^(-1/2) w, and for 2 x 2 matrices G^(1/2) = (G + s) / q with s = sqrt(det G),
# q = sqrt(trace G + 2 s), whose inverse is its adjugate over s.
S = math.sqrt(A * C - B * B)
Q = math.sqrt(A + C + 2 * S)
SMALLEST = math.sqrt((A + C) / 2 - math.hypot((A - C) / 2, B))

# CAGrad, c = 1/2: g_0 = (1, 1, 1) and the radius is sqrt(3) / 2. The first task is the worse off even at the point of
# the ball that is best for it, g_0 + sqrt(3) / 2 g_1 / |g_1|: there g_1 . d = -2 + 18 y, g_2 . d = 8 - 22 y.
Y = math.sqrt(3) / 2 / NORM_A
assert -2 + 18 * Y < 8 - 22 * Y

WORKED = {
    "mean": [0.5, 0.5],
    # g_1 . mean = (18 - 22) / 2 = -2: the projection takes 2 / 18 of g_1; g_2 . mean = 8 is no conflict
    "dualproj": [0.5 + 1 / 9, 0.5],
    "nash_mtl": [NASH, RATIO * NASH],
    "fairgrad": [NASH, RATIO * NASH],  # alpha = 1 is the same equation
    # equal projections: the bisector of the two unit vectors, weights in the ratio of 1 / norm
    "imtl_g": [NORM_C / (NORM_A + NORM_C), NORM_A / (NORM_A + NORM_C)],
    "aligned_mtl": [SMALLEST * (C - B + S) / (2 * S * Q), SMALLEST * (A - B + S) / (2 * S * Q)],
    "cagrad": [0.5 + Y, 0.5],
    # the bisector again; (|g_1| + |g_2|) cos(half the angle) times the unit vector is (|g_1| + |g_2|) / 2 (u_1 + u_2)
    "config": [(NORM_A + NORM_C) / (2 * NORM_A), (NORM_A + NORM_C) / (2 * NORM_C)],
    # the averages are 0 in the first step, so the target is a right angle and the rule is PCGrad
    "gradvac": [1 - B / A, 1 - B / C],
    "krum": [1.0, 0.0],  # two tasks are equally far from one another: the first
}

# The same updates as other implementations print them (six digits).
PUBLISHED = {
    "dualproj": [0.555556, 1.111111, 1.111111],
    "nash_mtl": [0.076584, 0.998533, 0.998533],
    "imtl_g": [0.076697, 1.0, 1.0],
    "aligned_mtl": [0.213279, 0.967333, 0.967333],
    "cagrad": [0.183503, 1.204124, 1.204124],
    "config": [0.158809, 2.070607, 2.070607],
}


def weights(name: str, vectors: Tensor, **options: Any) -> Tensor:
    tasks = [f"task{i}" for i in range(len(vectors))]
    return Rule(name, tasks, **options)(tasks, vectors @ vectors.T)


@pytest.mark.parametrize("name", WORKED)
def test_worked_example(name: str) -> None:
    found = weights(name, J)
    torch.testing.assert_close(found, torch.tensor(WORKED[name], dtype=torch.float64), rtol=0, atol=1e-12)
    if name in PUBLISHED:
        torch.testing.assert_close(found @ J, torch.tensor(PUBLISHED[name], dtype=torch.float64), rtol=0, atol=6e-7)


@pytest.mark.parametrize("scale", [1e-15, 1e15])
@pytest.mark.parametrize("name", WORKED)
def test_the_scale_of_the_gradients_does_not_matter(name: str, scale: float) -> None:
    factor = 1 / scale if name in ("nash_mtl", "fairgrad") else 1.0  # their weights are in units of 1 / g
    torch.testing.assert_close(weights(name, J * scale), weights(name, J) * factor, rtol=1e-9, atol=0)


def test_random_is_the_softmax_of_normal_draws() -> None:
    z = torch.from_numpy(Noise(3, "rule", "random", 0).normal(4))
    torch.testing.assert_close(weights("random", torch.eye(4, dtype=torch.float64), seed=3), torch.softmax(z, 0))
    draws = torch.stack([weights("random", J, seed=seed) for seed in range(2000)]).log()
    difference = draws[:, 0] - draws[:, 1]  # of two standard normal numbers
    assert float(difference.mean()) == pytest.approx(0.0, abs=0.1)
    assert float(difference.std()) == pytest.approx(math.sqrt(2), rel=0.05)


def test_gradvac_in_the_second_step() -> None:
    """The average is then beta times the first cosine; equation 2 with that target t."""
    rule, tasks, beta = Rule("gradvac", ["a", "b"], beta=0.25), ["a", "b"], 0.25
    rule(tasks, J @ J.T)
    rule.advance()
    phi = B / math.sqrt(A * C)
    t = beta * phi
    turn = (t * math.sqrt(1 - phi**2) - phi * math.sqrt(1 - t**2)) / math.sqrt(1 - t**2)
    wanted = [1 + turn * NORM_C / NORM_A, 1 + turn * NORM_A / NORM_C]
    assert rule(tasks, J @ J.T).tolist() == pytest.approx(wanted)
    assert rule.state is not None
    assert rule.state.cosine.tolist() == [
        [0.0, pytest.approx((1 - beta) * t + t)],
        [pytest.approx(2 * t - beta * t), 0.0],
    ]


def test_gradvac_brings_aligned_gradients_to_their_average() -> None:
    """Unlike PCGrad it acts without a conflict: cosine 0.6, average 0.8, so the first gradient must reach 0.8."""
    near = torch.tensor([[0.8, 0.6], [1.0, 0.0]], dtype=torch.float64)
    far = torch.tensor([[0.6, 0.8], [1.0, 0.0]], dtype=torch.float64)
    rule = Rule("gradvac", ["a", "b"], beta=1.0)  # the average is the last cosine
    rule(["a", "b"], near @ near.T)
    found = rule(["a", "b"], far @ far.T)
    # (0.6 + x) / |(0.6 + x, 0.8)| = 0.8 at x = 0.8 * 4 / 3 - 0.6 = 7 / 15, and by symmetry for the other
    assert found.tolist() == pytest.approx([1 + 7 / 15, 1 + 7 / 15])


@pytest.mark.parametrize("rescale, divisor", [("none", 1.0), ("1 + c^2", 1.25), ("1 + c", 1.5)])
def test_cagrad_rescale(rescale: str, divisor: float) -> None:
    found = weights("cagrad", J, rescale=rescale)
    torch.testing.assert_close(found, torch.tensor(WORKED["cagrad"], dtype=torch.float64) / divisor)


def test_cagrad_without_a_ball_is_the_mean_and_with_a_large_one_conflicts_with_nobody() -> None:
    assert weights("cagrad", J, c=0.0).tolist() == [0.5, 0.5]
    found = weights("cagrad", J, c=1.0) @ J
    assert (J @ found > 0).all()
    # radius sqrt(3): both tasks gain the same; u = x u_1 + y u_2 in the plane of the vectors
    assert float(J[0] @ found) == pytest.approx(float(J[1] @ found), rel=1e-9)
    assert float((found - 1).norm()) == pytest.approx(math.sqrt(3), rel=1e-9)


@pytest.mark.parametrize("zero", [False, True])
def test_cagrad_at_a_stationary_point_takes_the_nearest_direction_that_harms_nobody(zero: bool) -> None:
    """Opposite tasks (or one without a gradient) cannot gain: the third one's gradient is left, without theirs."""
    X = torch.tensor([[1.0, 0, 0], [-2.0, 0, 0], [3.0, 3.0, 0]], dtype=torch.float64)
    if zero:
        X = torch.tensor([[0.0, 0, 0], [3.0, 3.0, 0]], dtype=torch.float64)
        # the ball around g_2 / 2: the zero vector never gains, and g_2 / 2 itself harms nobody
        torch.testing.assert_close(weights("cagrad", X) @ X, X[1] / 2)
        return
    # mean (2/3, 1, 0); without the first coordinate (0, 1, 0), at a distance 2/3 > 0.5 sqrt(13) / 3 = 0.60: not in
    # the ball of c = 0.5, but in that of c = 0.9
    torch.testing.assert_close(weights("cagrad", X, c=0.9) @ X, torch.tensor([0.0, 1, 0], dtype=torch.float64))


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0, 10.0])
def test_fairgrad_of_orthogonal_gradients(alpha: float) -> None:
    """n^2 w = w^(-1 / alpha), so w = n^(-2 alpha / (1 + alpha)), a formula for each task; lengths 1e6 apart."""
    X = torch.diag(torch.tensor([2.0, 3e-6, 1.0], dtype=torch.float64))
    wanted = X.diagonal() ** (-2 * alpha / (1 + alpha))
    torch.testing.assert_close(weights("fairgrad", X, alpha=alpha), wanted, rtol=1e-10, atol=0)


@pytest.mark.parametrize("alpha", [0.5, 2.0, 10.0])
def test_fairgrad_solves_its_equation(alpha: float) -> None:
    w = weights("fairgrad", J, alpha=alpha)
    torch.testing.assert_close(J @ (w @ J), w ** (-1 / alpha), rtol=1e-10, atol=0)


@pytest.mark.parametrize("name", ["nash_mtl", "fairgrad"])
def test_without_a_bargain_the_weights_are_zero(name: str) -> None:
    opposite = torch.tensor([[1.0, 2, 0], [-3, -6, 0], [0, 1, 5]], dtype=torch.float64)
    assert weights(name, opposite).tolist() == [0.0, 0.0, 0.0]
    assert weights(name, torch.zeros(2, 3, dtype=torch.float64)).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("name", ["nash_mtl", "fairgrad", "imtl_g", "config"])
def test_a_zero_gradient_is_left_out(name: str) -> None:
    X = torch.cat([J[:1], torch.zeros(1, 3, dtype=torch.float64), J[1:]])
    torch.testing.assert_close(weights(name, X)[[0, 2]], weights(name, J), rtol=1e-12, atol=0)
    assert weights(name, X)[1] == 0


@pytest.mark.parametrize("name", ["imtl_g", "config"])
def test_opposite_gradients_give_zero(name: str) -> None:
    """Nothing but the zero vector has equal projections onto both, and no direction the same positive cosine."""
    X = torch.tensor([[1.0, 2.0], [-3.0, -6.0]], dtype=torch.float64)
    assert (weights(name, X) @ X).abs().max() < 1e-12
    if name == "imtl_g":
        assert weights(name, X).tolist() == pytest.approx([0.75, 0.25])


def test_imtl_g_of_parallel_gradients() -> None:
    """C = [[1, 1], [1, 1]]: the shortest (a_t |g_t|) has equal entries, so a is as 1 / |g|."""
    X = torch.tensor([[1.0, 2.0], [2.0, 4.0]], dtype=torch.float64)
    assert weights("imtl_g", X).tolist() == pytest.approx([2 / 3, 1 / 3])


def test_imtl_g_may_oppose_every_gradient() -> None:
    """As published: a short gradient between two others gets a large negative weight before the sum is set to 1."""
    X = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0.01, 0.01, 0.001]], dtype=torch.float64)
    found = weights("imtl_g", X)
    # d is a multiple of (1, 1, z) with the same projection 1 on the third unit vector: z = 10 (sqrt(2.01) - 2), and
    # X^T a = (1, 1, z) has a_3 = 1000 z, a_1 = a_2 = 1 - 10 z
    z = 10 * (math.sqrt(2.01) - 2)
    wanted = torch.tensor([1 - 10 * z, 1 - 10 * z, 1000 * z], dtype=torch.float64)
    assert wanted.sum() < 0
    torch.testing.assert_close(found, wanted / wanted.sum(), rtol=1e-8, atol=0)
    assert (X @ (found @ X) < 0).all()


def test_aligned_mtl_of_orthogonal_gradients_with_a_preference() -> None:
    """Orthogonal gradients are the principal components: each is brought to the shortest length, 2 here."""
    X = torch.diag(torch.tensor([2.0, 5.0, 8.0], dtype=torch.float64))
    priority = torch.tensor([1.5, 1.0, 0.5], dtype=torch.float64)
    found = Rule("aligned_mtl", ["a", "b", "c"])(["a", "b", "c"], X @ X.T, priority=priority)
    assert (found @ X).tolist() == pytest.approx([2 * 0.5, 2 / 3, 2 / 6])


KRUM = torch.tensor([[0.0, 0], [1, 0], [0, 1.5], [1, 2], [50, -50]], dtype=torch.float64)
# squares of the distances, without those to the last: 0-1: 1, 0-2: 2.25, 0-3: 5, 1-2: 3.25, 1-3: 4, 2-3: 1.25


@pytest.mark.parametrize("byzantine, selected, chosen", [
    (1, 1, [0]),     # the 2 nearest: 0: 3.25, 1: 4.25, 2: 3.5, 3: 5.25
    (1, 2, [0, 2]),
    (1, 4, [0, 1, 2, 3]),
    (0, 1, [2]),     # the 3 nearest: 0: 8.25, 1: 8.25, 2: 6.75, 3: 10.25
])  # fmt: skip
def test_krum_by_hand(byzantine: int, selected: int, chosen: list[int]) -> None:
    found = weights("krum", KRUM, byzantine=byzantine, selected=selected)
    assert found.tolist() == [1 / selected if task in chosen else 0.0 for task in range(5)]


@pytest.mark.parametrize("options, text", [
    ({"byzantine": 2}, "byzantine is 2; allowed: at most 1 for 5 tasks"),
    ({"selected": 6}, "selected is 6; allowed: at most 5"),
])  # fmt: skip
def test_krum_refuses_what_it_cannot_serve(options: dict[str, int], text: str) -> None:
    with pytest.raises(BadValue, match=text):
        weights("krum", KRUM, **options)


def test_a_scale_of_its_own_cannot_become_a_mean() -> None:
    from polytask.balancing.scale import rescaled

    assert rescaled("own", "published", 3, square=4.0) == 1.0
    assert rescaled("own", "unit", 3, square=4.0) == 0.5
    with pytest.raises(NotFinite, match="a length of its own is neither a sum nor a mean"):
        rescaled("own", "mean", 3, square=4.0)


def test_the_mean_of_many() -> None:
    X = torch.from_numpy(np.random.default_rng(0).standard_normal((7, 4)))
    torch.testing.assert_close(weights("mean", X) @ X, X.mean(0))
