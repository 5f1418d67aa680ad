"""Rules on whole tensors against plain float64 NumPy, on matrices of full and of low rank."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from merging import references
from polytask.core.blocks import BLOCK
from polytask.core.noise import Noise
from polytask.core.rules import find
from polytask.merging.decompositions import nearest_orthonormal, pseudo_inverse, thin_svd
from polytask.merging.descent import adam


def matrices(tasks: int, m: int, n: int, rank: int | None = None) -> Tensor:
    """Task matrices in float32 with singular values that fall by a factor of a thousand, as deltas' do."""
    noise = Noise(0, tasks, m, n)
    k = min(m, n) if rank is None else rank
    left = noise.normal(tasks * m * k).reshape(tasks, m, k)
    right = noise.normal(tasks * k * n, start=tasks * m * k).reshape(tasks, k, n)
    sizes = 10.0 ** -np.linspace(0, 3, k)
    return torch.from_numpy((left * sizes) @ right * 1e-2).float()


SHAPES = [(3, 12, 20, None), (2, 20, 12, None), (1, 8, 8, None), (3, 16, 24, 2), (4, 1, 9, None), (5, 3, 4, None)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name, options, reference", [
    ("iso_c", {}, references.iso_c),
    ("iso_cts", {"common": 0.5}, lambda X: references.iso_cts(X, 0.5)),
    ("tsv_m", {}, references.tsv_m),
    ("knots", {"density": 1.0}, references.knots),
    ("wudi", {"solver": "exact"}, references.wudi_exact),
])  # fmt: skip
def test_matches_the_reference(
    name: str, options: dict[str, object], reference: Callable[[np.ndarray], np.ndarray], shape: tuple
) -> None:
    X = matrices(*shape)
    found = find(name)(X, **options)
    wanted = reference(X.double().numpy())
    assert found.dtype == torch.float32
    size = np.abs(wanted).max()
    # a unit in the last place of float32, or rounding of the decomposition relative to the largest element
    assert np.abs(found.double().numpy() - wanted).max() <= 1e-6 * size, (name, shape)


@pytest.mark.parametrize("name", ["iso_c", "iso_cts", "tsv_m", "knots", "wudi", "doge"])
def test_a_sign_turns_a_result_around_bit_for_bit(name: str) -> None:
    X = matrices(3, 10, 14)
    options = {"steps": 5} if name in ("wudi", "doge") else {}
    assert torch.equal(find(name)(-X, **options), -find(name)(X, **options))


def test_wudi_descends_towards_the_exact_minimum() -> None:
    """The same 40 steps by torch's own Adam on the objective as the paper writes it."""
    X = matrices(3, 6, 8).double()
    norms = X.square().sum((1, 2))
    M = X.sum(0).clone().requires_grad_()
    optimizer = torch.optim.Adam([M], lr=1e-3)
    for _ in range(40):
        optimizer.zero_grad()
        (((M - X) @ X.mT).square().sum((1, 2)) / norms).sum().backward()
        optimizer.step()
    found = find("wudi")(X.float(), steps=40, learning_rate=1e-3)
    torch.testing.assert_close(found.double(), M.detach(), rtol=1e-4, atol=1e-5)

    def objective(candidate: Tensor) -> float:
        return float((((candidate - X) @ X.mT).square().sum((1, 2)) / norms).sum())

    exact = find("wudi")(X, solver="exact")
    assert objective(exact) < objective(M.detach()) < objective(X.sum(0))


def test_doge_descends_on_its_objective_outside_of_the_shared_subspace() -> None:
    """40 steps by torch's own Adam on the objective, its gradient projected."""
    X, coefficient = matrices(3, 12, 9).double(), 0.5
    scales = coefficient / X.square().sum((1, 2)).sqrt()
    tops = [torch.linalg.svd(x, full_matrices=False)[0][:, :3] for x in X]  # 9 / 3 of each
    shared = torch.linalg.svd(torch.cat(tops, 1), full_matrices=False)[0][:, :2]  # 1/6 of 9, rounded up
    D = torch.zeros(12, 9, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([D], lr=1e-3)
    for _ in range(40):
        optimizer.zero_grad()
        merged = torch.einsum("t,tmn->mn", scales, X + D)
        (((merged - X) * X).sum(2).square()).sum().backward()
        D.grad -= shared @ (shared.T @ D.grad)
        optimizer.step()
    wanted = torch.einsum("t,tmn->mn", scales, X + D.detach())
    found = find("doge")(X, coefficient=coefficient, density=1.0, steps=40, learning_rate=1e-3)
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-9)
    assert not torch.allclose(found, torch.einsum("t,tmn->mn", scales, X), rtol=1e-2)


def test_doge_keeps_the_largest_elements_of_a_tensor_of_several_blocks() -> None:
    X = matrices(2, 3, 100_000)
    found = find("doge")(X, coefficient=1.0, density=0.25, steps=0)
    wanted = torch.zeros(3, 100_000, dtype=torch.float64)
    for x in X.double():
        kept = x.flatten().abs().argsort(descending=True)[:75_000]
        wanted.view(-1)[kept] += x.flatten()[kept] / x.norm()
    assert X[0].numel() > BLOCK
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-9)


def test_thin_svd() -> None:
    for m, n in ((7, 4), (4, 7), (5, 5)):
        A = matrices(1, m, n)[0].double()
        U, S, Vh = thin_svd(A)
        torch.testing.assert_close(U * S @ Vh, A, rtol=0, atol=1e-14)
        torch.testing.assert_close(U.T @ U, torch.eye(4 if m != n else 5, dtype=torch.float64), rtol=0, atol=1e-7)
        torch.testing.assert_close(S, torch.linalg.svdvals(A), rtol=1e-7, atol=0)
        assert [len(part) for part in (thin_svd(A, 2)[1], thin_svd(0 * A)[1], thin_svd(A[:0])[1])] == [2, 0, 0]
    assert len(thin_svd(matrices(1, 30, 40, 3)[0])[1]) == 3  # the rounding of float32 is no direction


def test_nearest_orthonormal_and_pseudo_inverse() -> None:
    X = matrices(1, 9, 4)[0].double()
    Q = nearest_orthonormal(X)
    torch.testing.assert_close(Q.T @ Q, torch.eye(4, dtype=torch.float64), rtol=0, atol=1e-7)
    np.testing.assert_allclose(Q.numpy(), references.orthonormal(X.numpy()), atol=1e-7)
    twice = torch.cat([X, X], 1)
    np.testing.assert_allclose(nearest_orthonormal(twice).numpy(), references.orthonormal(twice.numpy()), atol=1e-7)
    G = X @ X.T  # of rank 4 in 9 dimensions
    np.testing.assert_allclose(pseudo_inverse(G).numpy(), np.linalg.pinv(G.numpy(), rcond=1e-12), rtol=1e-6, atol=1e-3)


def test_adam_is_torchs() -> None:
    start = torch.linspace(-1, 1, 7, dtype=torch.float64)
    value = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([value], lr=0.01)
    for _ in range(30):
        optimizer.zero_grad()
        (value**4).sum().backward()
        optimizer.step()
    torch.testing.assert_close(adam(start, lambda x: 4 * x**3, 30, 0.01), value.detach(), rtol=1e-12, atol=1e-14)
