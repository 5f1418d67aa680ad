"""Worked values of the rules that set the sizes of the tasks' gradients."""

import math

import pytest
import torch

from polytask.core.errors import BadValue
from polytask.core.noise import Noise
from polytask.core.rules import find
from polytask.core.state import Rule

J = torch.tensor([[-4.0, 1, 1], [6, 1, 1]], dtype=torch.float64)  # norms sqrt 18 and sqrt 38
NORMS = [math.sqrt(18), math.sqrt(38)]
ZERO = torch.zeros(1, 3, dtype=torch.float64)


def test_gradient_normalization_by_hand() -> None:
    mean = (NORMS[0] + NORMS[1]) / 2
    found = find("gradient_normalization")(J @ J.T)
    assert found.tolist() == pytest.approx([mean / NORMS[0], mean / NORMS[1]], rel=1e-14)
    vectors = torch.cat([J, ZERO])  # a task without a gradient changes nothing for the others
    assert find("gradient_normalization")(vectors @ vectors.T).tolist() == pytest.approx([*found.tolist(), 0.0])


def test_rotograd_scaling_by_hand() -> None:
    """At first every norm is its own first: alpha = 1/2, C the mean norm. Then task a's gradient is halved and b's as
    it was: alpha in the ratio 1/2 to 1, so (1/3, 2/3), and C = sqrt(18) / 6 + 2 sqrt(38) / 3."""
    rule = Rule("rotograd_scaling", ["a", "b"])
    mean = (NORMS[0] + NORMS[1]) / 2
    assert rule(["a", "b"], J @ J.T).tolist() == pytest.approx([mean / NORMS[0], mean / NORMS[1]], rel=1e-14)
    later = J * torch.tensor([[0.5], [1.0]])
    common = NORMS[0] / 6 + 2 * NORMS[1] / 3
    found = rule(["a", "b"], later @ later.T)
    assert found.tolist() == pytest.approx([2 * common / NORMS[0], common / NORMS[1]], rel=1e-14)
    lengths = (found[:, None] * later).norm(dim=1)
    assert lengths.tolist() == pytest.approx([common, common], rel=1e-14)


def test_rotograd_scaling_waits_for_a_tasks_first_gradient() -> None:
    rule = Rule("rotograd_scaling", ["a", "b"])
    without = torch.stack([J[0], torch.zeros(3, dtype=torch.float64)])
    assert rule(["a", "b"], without @ without.T).tolist() == pytest.approx([1.0, 0.0])
    assert rule.state.first_norm.isnan().tolist() == [False, True]
    rule(["a", "b"], J @ J.T)
    assert rule.state.first_norm.tolist() == pytest.approx(NORMS)


def test_svd_reweighting_by_hand() -> None:
    """G = [[18, -22], [-22, 38]]: its larger eigenvalue is 28 + sqrt 584, its eigenvector (22, -(10 + sqrt 584))."""
    one = find("svd_reweighting")(J @ J.T)
    shares = torch.tensor([22.0, 10 + math.sqrt(584)], dtype=torch.float64)
    torch.testing.assert_close(one, 2 * shares / shares.sum(), rtol=1e-12, atol=0)
    both = find("svd_reweighting")(J @ J.T, rank=2)  # every direction is kept: the vectors' own lengths
    lengths = torch.tensor(NORMS, dtype=torch.float64)
    torch.testing.assert_close(both, 2 * lengths / lengths.sum(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_svd_reweighting_equals_algorithm_2_on_features_and_labels(rank: int) -> None:
    noise = Noise(0, "svd")
    x = torch.from_numpy(noise.normal(50 * 6)).reshape(50, 6)
    y = torch.from_numpy(noise.child("y").normal(50 * 4)).reshape(50, 4)
    theta = x.T @ y
    directions = torch.linalg.svd(theta)[0][:, :rank]
    alpha = (theta.T @ directions).norm(dim=1)
    found = find("svd_reweighting")(theta.T @ theta, rank=rank)
    torch.testing.assert_close(found, alpha * 4 / alpha.sum(), rtol=1e-10, atol=0)


def test_svd_reweighting_of_noise_and_of_ties() -> None:
    """A task whose vector is orthogonal to the common direction of two others gets nothing; equal orthogonal vectors
    tie, and count alike whatever the rank."""
    vectors = torch.tensor([[3.0, 0, 0], [3.0, 0, 0], [0, 1.0, 0]], dtype=torch.float64)
    assert find("svd_reweighting")(vectors @ vectors.T).tolist() == pytest.approx([1.5, 1.5, 0.0])
    for rank in (1, 2, 3, 7):
        assert find("svd_reweighting")(torch.eye(3).double(), rank=rank).tolist() == pytest.approx([1.0, 1.0, 1.0])
    with pytest.raises(BadValue, match="rank is 0"):
        Rule("svd_reweighting", ["a"], rank=0)
