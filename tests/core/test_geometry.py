"""Inner products, angles and signs of task vectors."""

import math

import pytest
import torch

from polytask.core.errors import BadValue, UnknownName
from polytask.core.geometry import conflict_rate, cosines, gram, sign_agreement
from polytask.core.task_vectors import TaskVectors, weighted_sum


def test_gram_by_hand() -> None:
    stack = torch.tensor([[-4.0, 1, 1], [6, 1, 1]])
    assert gram(stack).tolist() == [[18.0, -22.0], [-22.0, 38.0]]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_gram_of_many_columns(dtype: torch.dtype) -> None:
    """More columns than a block has."""
    stack = torch.randn(3, 50, 3000, generator=torch.Generator().manual_seed(0)).to(dtype)
    exact = stack.double().flatten(1) @ stack.double().flatten(1).T
    lengths = exact.diagonal().sqrt()
    tolerance = 1e-12 if dtype == torch.float64 else 150_000**0.5 * torch.finfo(torch.float32).eps
    assert ((gram(stack) - exact).abs() / lengths[:, None] / lengths).max() < tolerance
    torch.testing.assert_close(gram(stack, double=True), exact, rtol=1e-12, atol=1e-9)


def test_gram_of_parameters_without_dimensions_or_elements() -> None:
    assert gram(torch.tensor([2.0, -3.0])).tolist() == [[4.0, -6.0], [-6.0, 9.0]]
    assert gram(torch.zeros(2, 0)).tolist() == [[0.0, 0.0], [0.0, 0.0]]


def test_gram_beside_a_zero_vector_keeps_small_ones() -> None:
    stack = torch.tensor([[0.0, 0.0], [3e-30, 4e-30]])
    assert gram(stack)[1, 1].item() == pytest.approx(25e-60, rel=1e-6)


def test_gram_lets_infinities_through() -> None:
    assert gram(torch.tensor([[1.0, math.inf], [1.0, 1.0]]))[0, 0] == math.inf
    assert gram(torch.tensor([[1.0, math.nan], [1.0, 1.0]]))[0, 0].isnan()


def test_cosines_and_conflicts() -> None:
    matrix = gram(torch.tensor([[1.0, 0], [-2.0, 0], [0, 3.0], [0, 0]]))
    found = cosines(matrix)
    assert found[:3, :3].tolist() == [[1.0, -1.0, 0.0], [-1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    assert found[3].isnan().all()
    assert conflict_rate(matrix) == pytest.approx(1 / 6)
    assert conflict_rate(matrix[:1, :1]) == 0.0


def test_sign_agreement() -> None:
    found = sign_agreement(torch.tensor([[1.0, -1, 2, 0], [3.0, 1, 5, 1], [0, 0, 0, 1]]))
    assert found[0, 1].item() == pytest.approx(2 / 3)
    assert found[0, 2].isnan()
    assert found[1, 2].item() == 1.0


def test_task_vectors() -> None:
    given = {
        "a": {"w": torch.ones(2, 2), "b": torch.tensor(1.0)},
        "b": {"w": -torch.ones(2, 2), "b": torch.tensor(2.0)},
    }
    vectors = TaskVectors.from_mapping(given)
    assert (list(vectors), vectors.names, len(vectors)) == (["a", "b"], ["w", "b"], 2)
    assert vectors["b"]["w"].tolist() == [[-1.0, -1.0], [-1.0, -1.0]]
    assert vectors.gram().tolist() == [[5.0, -2.0], [-2.0, 8.0]]
    assert vectors.gram(["b"]).tolist() == [[1.0, 2.0], [2.0, 4.0]]
    combined = vectors.combined(torch.tensor([2.0, 1.0], dtype=torch.float64))
    assert (combined["w"].tolist(), combined["b"].item()) == ([[1.0, 1.0], [1.0, 1.0]], 4.0)
    assert vectors.sign_agreement()[0, 1].item() == pytest.approx(1 / 5)
    with pytest.raises(UnknownName, match="no task 'c'"):
        vectors["c"]


def test_task_vectors_that_do_not_fit() -> None:
    with pytest.raises(BadValue, match="number of tasks"):
        TaskVectors.from_mapping({})
    with pytest.raises(UnknownName, match="task 'b': no parameter 'v'"):
        TaskVectors.from_mapping({"a": {"w": torch.ones(1)}, "b": {"v": torch.ones(1)}})
    with pytest.raises(BadValue, match="task 'b': the shape of 'w' is"):
        TaskVectors.from_mapping({"a": {"w": torch.ones(1)}, "b": {"w": torch.ones(2)}})
    with pytest.raises(BadValue, match="a row for each task"):
        TaskVectors(["a", "b"], {"w": torch.ones(3, 2)})


def test_a_weighted_sum_in_half_precision_keeps_the_weights() -> None:
    stack = torch.tensor([[256.0], [-256.0]], dtype=torch.bfloat16)
    weights = torch.tensor([1.001, 1.0], dtype=torch.float64)  # 1.001 is 1 in bfloat16
    found = weighted_sum(stack, weights)
    assert found.dtype == torch.bfloat16
    assert found.item() == pytest.approx(0.256, rel=1e-2)


@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (2, 3)])
def test_a_weighted_sum_has_the_parameters_shape(shape: tuple[int, ...]) -> None:
    found = weighted_sum(torch.ones(2, *shape), torch.tensor([1.0, 2.0]))
    assert found.shape == shape
    assert (found == 3.0).all()
