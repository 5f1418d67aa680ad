"""Worked values of the rules of merging: by hand, from the papers' formulas."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from polytask.core.errors import BadValue
from polytask.core.rules import find
from polytask.core.state import Rule


def weights_of(name: str, vectors: list[list[float]], **options: Any) -> list[float]:
    X = torch.tensor(vectors, dtype=torch.float64)
    tasks = [f"task{i}" for i in range(len(X))]
    return Rule(name, tasks, **options)(tasks, X @ X.T).tolist()


def combined(name: str, *inputs: object, **options: Any) -> list:
    given = [torch.tensor(value, dtype=torch.float64) for value in inputs]
    tasks = [f"task{i}" for i in range(len(given[0]))]
    return Rule(name, tasks, **options)(tasks, *given).tolist()


def near(wanted: object) -> object:
    return pytest.approx(wanted, rel=1e-9, abs=1e-12)


def test_passthrough() -> None:
    assert combined("passthrough", [[1.0, -2.0]]) == [1.0, -2.0]
    with pytest.raises(BadValue, match="the number of tasks is 2; allowed: 1"):
        combined("passthrough", [[1.0], [2.0]])


def test_slerp() -> None:
    """A right angle at a third of the way: sin 60 and sin 30 degrees, whatever the lengths."""
    wanted = near([math.sqrt(3) / 2, 0.5])
    assert weights_of("slerp", [[1.0, 0], [0, 1]], t=1 / 3) == wanted
    assert weights_of("slerp", [[2.0, 0], [0, 3]], t=1 / 3) == wanted
    assert weights_of("slerp", [[2.0, 0], [0, 3]], t=1 / 3, straight=-0.1) == near([2 / 3, 1 / 3])
    # (1 - t) 1 to t 2 is 1 to 1 at t = 1/3, and 1 to 2 at t = 1/2
    weights = {"task0": 1.0, "task1": 2.0}
    assert weights_of("slerp", [[2.0, 0], [0, 3]], t=1 / 3, weights=weights) == near([math.sqrt(0.5)] * 2)
    assert weights_of("slerp", [[2.0, 0], [0, 3]], weights=weights) == near([math.sqrt(3) / 2, 0.5][::-1])
    with pytest.raises(BadValue, match=r"\(1 - t\) and t times the weights is 0\.0; allowed: more than 0"):
        weights_of("slerp", [[1.0, 0], [0, 1]], t=1.0, weights={"task0": 1.0, "task1": 0.0})
    for other in ([2.0, 0], [-2.0, 0], [0.0, 0]):  # parallel, opposite, without a direction
        assert weights_of("slerp", [[1.0, 0], other], t=0.25) == near([0.75, 0.25])
    with pytest.raises(BadValue, match="the number of tasks is 3; allowed: 2"):
        weights_of("slerp", [[1.0, 0], [0, 1], [1, 1]])


def test_slerp_lines() -> None:
    """Rows: the first pair at a right angle (half of it: weights 1 / sqrt 2), the second parallel (the mean)."""
    a, b = [[1.0, 0], [1, 1]], [[0.0, 1], [3, 3]]
    half = 1 / math.sqrt(2)
    rows = combined("slerp_lines", [a, b])
    assert [*rows[0], *rows[1]] == near([half, half, 2.0, 2.0])
    columns = combined("slerp_lines", [[[1.0, 1], [0, 1]], [[0.0, 3], [1, 3]]], along="column")
    assert [*columns[0], *columns[1]] == near([half, 2.0, half, 2.0])
    assert combined("slerp_lines", [[1.0, 0], [0.0, 1]]) == near([half, half])
    thirds = combined("slerp_lines", [[1.0, 0], [0.0, 1]], weights={"task0": 1.0, "task1": 2.0})
    assert thirds == near([0.5, math.sqrt(3) / 2])


def test_multislerp() -> None:
    """On a circle the tangents' mean is the mean angle: 3/4 of the right angle for weights 1 and 3."""
    angle = 0.75 * math.pi / 2
    wanted = near([math.cos(angle), math.sin(angle)])
    assert weights_of("multislerp", [[1.0, 0], [0, 1]], weights={"task0": 1.0, "task1": 3.0}) == wanted
    half = 1 / math.sqrt(2)
    assert weights_of("multislerp", [[1.0, 0], [0, 3]]) == near([2 * half, 2 * half / 3])  # of length 2
    orthogonal = weights_of(
        "multislerp", [[1.0, 0], [0, 1]], weights={"task0": 3.0, "task1": 4.0}, normalize=False, project="orthogonal"
    )
    assert orthogonal == near([7 * 0.6, 7 * 0.8])  # the direction (3, 4), the length 3 + 4
    assert weights_of("multislerp", [[1.0, 0], [-2, 0]]) == near([0.5, 0.5])  # no mean direction
    assert weights_of("multislerp", [[1.0, 0], [0, 0]]) == near([0.5, 0.0])  # the mean length of 1 and 0
    with pytest.raises(BadValue, match=r"the sum of the weights is 0\.0"):
        weights_of("multislerp", [[1.0, 0], [0, 1]], weights={"task0": 1.0, "task1": -1.0})


def test_karcher() -> None:
    """On a circle the centre of mass of directions at 0, 30 and 90 degrees is at 40; the mean length is 2."""
    at = [math.radians(degrees) for degrees in (0, 30, 90)]
    vectors = [[n * math.cos(a), n * math.sin(a)] for n, a in zip((1, 2, 3), at, strict=True)]
    found = torch.tensor(weights_of("karcher", vectors), dtype=torch.float64) @ torch.tensor(
        vectors, dtype=torch.float64
    )
    assert found.tolist() == near([2 * math.cos(math.radians(40)), 2 * math.sin(math.radians(40))])
    assert weights_of("karcher", [[1.0, 0], [-1, 0]]) == near([0.5, 0.5])
    assert weights_of("karcher", [[0.0, 0], [0, 0]]) == near([0.5, 0.5])


def test_model_stock() -> None:
    """t = N c / (1 + (N - 1) c): 0.75 for two at cosine 0.6 and for three at cosine 0.5."""
    assert weights_of("model_stock", [[1.0, 0], [0.6, 0.8]]) == near([0.375, 0.375])
    three = [[1.0, 1, 0], [1.0, 0, 1], [0.0, 1, 1]]
    assert weights_of("model_stock", three) == near([0.25, 0.25, 0.25])
    assert weights_of("model_stock", [[1.0, 0], [-0.6, 0.8]]) == [0.0, 0.0]
    assert weights_of("model_stock", [[1.0, 0], [-0.6, 0.8]], clip=False) == near([-1.5, -1.5])
    assert weights_of("model_stock", [[2.0, 0]]) == [1.0]
    assert weights_of("model_stock", [[1.0, 0], [0.6, 0.8], [0, 0]]) == near([0.6 / 2.2] * 3)
    with pytest.raises(BadValue, match=r"the mean cosine is -1\.0; allowed: more than -1; or clip: true"):
        weights_of("model_stock", [[1.0, 0], [-1, 0]], clip=False)


def test_model_stock_rows() -> None:
    """Rows at cosine 0.6 (t / N = 0.375), equal (1/2), at -0.6 (0), and with one vector alone (no angle: 1/2)."""
    a, b = [[1.0, 0], [1, 2], [1, 0], [4, 0]], [[0.6, 0.8], [1, 2], [-0.6, 0.8], [0, 0]]
    found = combined("model_stock_rows", [a, b])
    assert [number for row in found for number in row] == near([0.6, 0.3, 1, 2, 0, 0, 2, 0])
    assert combined("model_stock_rows", [[1.0, 0], [0.6, 0.8]]) == near([0.6, 0.3])  # one axis, one row
    assert combined("model_stock_rows", [[[3.0, 4]]]) == [[3.0, 4.0]]
    assert combined("model_stock_rows", [[[1.0, 0]], [[-0.6, 0.8]]], clip=False)[0] == near([-0.6, -1.2])
    with pytest.raises(BadValue, match=r"rule 'model_stock_rows': the mean cosine is -1\.0; allowed: more than -1"):
        combined("model_stock_rows", [[[1.0, 0], [1, 1]], [[-1, 0], [1, 1]]], clip=False)


def test_metagpt() -> None:
    assert weights_of("metagpt", [[1.0, 0], [1, math.sqrt(2)]]) == near([0.25, 0.75])
    assert weights_of("metagpt", [[0.0], [0.0]]) == [0.0, 0.0]


def test_magnitude_max() -> None:
    assert combined("magnitude_max", [[1.0, -2, 0, 2], [-3.0, 1, 0, -2]]) == [-3.0, -2.0, 0.0, 2.0]


def test_emr() -> None:
    """Sums 3, 2, -1 and 0: the largest that agree are 2, 3 and -4; nothing where the sum is 0."""
    assert combined("emr", [[1.0, 3, -4, 1], [2.0, -1, 3, -1]]) == [2.0, 3.0, -4.0, 0.0]


def test_consensus() -> None:
    """Sums 2, 1.3 and 0.5; at 0.4: 1 >= .4 twice; 0.3 < 0.4 (1.3 - 0.3); 1 >= 0.2 and 0.5 >= 0.4."""
    stack = [[1.0, 1.0, 1.0, 0], [1.0, 0.3, -0.5, 0]]
    assert combined("consensus", stack) == near([2.0, 0.0, 0.5, 0.0])
    assert combined("consensus", stack, agree=1) == near([2.0, 1.3, 0.5, 0.0])
    assert combined("consensus", stack, mask_scale={"task0": 0.4, "task1": 0.25}) == near([2.0, 1.3, 0.5, 0.0])
    assert combined("consensus", stack[:1]) == stack[0]  # one task cannot be two


def test_consensus_around_the_elected_sign() -> None:
    """Elected means 1, 0.65 and 1 (of 1 alone); at 0.4: 1 >= 0 twice; 1 >= .14 and .3 >= .14; 1 >= 0 and .5 < .6."""
    stack = [[1.0, 1.0, 1.0, 0], [1.0, 0.3, -0.5, 0]]
    assert combined("consensus", stack, merged="elect") == near([1.0, 0.65, 0.0, 0.0])
    assert combined("consensus", stack, merged="elect", agree=1) == near([1.0, 0.65, 1.0, 0.0])


def test_nearswap() -> None:
    assert combined("nearswap", [[0.05, -0.3, 0.0]], t=0.1) == [0.05, -0.1, 0.0]


def test_arcee_fusion() -> None:
    """One row, so importance is proportional to the change: quartiles 2, 3, 4, and 3 + 1.5 x 2 = 6."""
    change = [[1.0, -2, 3, 4, -100]]
    assert combined("arcee_fusion", change, [0.0] * 5) == [0, 0, 0, 0, -100]
    assert combined("arcee_fusion", change, [0.0] * 5, spread=0.5) == [0, 0, 0, 4, -100]
    rows = [[[3.0, 0, 0], [2.0, 2, 2]]]  # adding one number to a whole row changes no softmax: no importance
    assert combined("arcee_fusion", rows, [[0.0] * 3] * 2, spread=1.0)[0] == [3, 0, 0]


def test_calculate_erase() -> None:
    """Both squared lengths are 5, so both coefficients 1/2; the second element's sum is positive: -1 is erased."""
    stack = [[2.0, -1], [1.0, 2]]
    assert combined("calculate_erase", stack) == near([1.5, 1.0])
    assert combined("calculate_erase", stack, divide="weights") == near([1.5, 2.0])
    # squared lengths 9 and 1: coefficients 0.9 and 0.1; plain votes cancel, weighted ones elect the first
    assert combined("calculate_erase", [[3.0, 0.0], [-1.0, 0.0]]) == near([2.7, 0.0])
    assert combined("calculate_erase", [[2.0, 2.0], [-2.0, 0.0]]) == near([0.0, 4 / 3])
    assert combined("calculate_erase", [[2.0, 2.0], [-2.0, 0.0]], vote="weighted") == near([4 / 3, 4 / 3])


def test_pcb() -> None:
    """Of one task the elements of largest square; of two the scores by their formula."""
    assert combined("pcb", [[1.0, -2, 3, 4]], density=0.5) == near([0.0, 0.0, 3.0, 4.0])
    e = math.e
    own = (
        e**2 / (e**2 + 1) * (e / (e + 1) + 0.5)
    )  # task 0 at element 0: N = (1, 0) of its square, (0, 0) of the product
    other = 1 / (e**2 + 1) * (1 / (e + 1) + 0.5)
    found = combined("pcb", [[1.0, 0], [0, 2.0]], density=1.0)
    assert found == pytest.approx([own / (own + other), 2 * own / (own + other)], rel=1e-6)
    assert combined("pcb", [[1.0, 0], [0, 2.0]], density=0.5) == near([1.0, 2.0])


def test_doge() -> None:
    """A tensor with one axis gets no correction: unit vectors times the coefficient, then the largest elements."""
    assert combined("doge", [[3.0, 4], [0.0, 0]], density=1.0) == pytest.approx([0.07 * 0.6, 0.07 * 0.8])
    assert combined("doge", [[3.0, 4]], density=0.5) == pytest.approx([0.0, 0.07 * 0.8])
    matrices = [[[3.0, 0], [0, 4]], [[5.0, 0], [0, 0]]]
    found = combined("doge", matrices, density=1.0, steps=0, coefficient=1.0)
    assert [*found[0], *found[1]] == pytest.approx([1.6, 0.0, 0.0, 0.8])


def test_tsv_m() -> None:
    """Orthogonal directions come back as they are; a shared one is shared out."""
    assert combined("tsv_m", [[[3.0, 0], [0, 0]], [[0.0, 0], [0, 2]]]) == [pytest.approx([3, 0]), pytest.approx([0, 2])]
    # u u' of both tasks: U = V = [u u] / sqrt 2, so the singular values 3 and 1 add up halved
    assert combined("tsv_m", [[[3.0, 0], [0, 0]], [[1.0, 0], [0, 0]]]) == [pytest.approx([2, 0]), pytest.approx([0, 0])]
    assert combined("tsv_m", [[1.0, 2], [3.0, 4]]) == [2.0, 3.0]  # no matrix: the mean


def test_iso_c() -> None:
    """Singular values 2 and 4 of the sum become 3 and 3; of a rank-1 sum nothing else appears."""
    found = combined("iso_c", [[[0.0, 1], [4, 0]], [[0.0, 1], [0, 0]]])
    assert [*found[0], *found[1]] == near([0, 3, 3, 0])
    found = combined("iso_c", [[[5.0, 0], [0, 0]], [[1.0, 0], [0, 0]]])
    assert [*found[0], *found[1]] == near([6, 0, 0, 0])


def test_iso_cts() -> None:
    """One common direction (5), then the first task's (3) and the second's (1) outside it: 3 each."""
    first, second = torch.diag(torch.tensor([5.0, 3, 0])), torch.diag(torch.tensor([0.0, 0, 1]))
    found = combined("iso_cts", [first.tolist(), second.tolist()], common=1 / 3)
    assert torch.allclose(torch.tensor(found), 3 * torch.eye(3), atol=1e-6)


def test_knots() -> None:
    """U = I, S = (2, 1) and V_1, V_2 with one 1 each: all of it agrees."""
    found = combined("knots", [[[2.0, 0], [0, 0]], [[0.0, 0], [0, 1]]], density=1.0)
    assert [*found[0], *found[1]] == pytest.approx([2, 0, 0, 1])
    # one direction of length sqrt(9 + 16): V_1 = 0.6, V_2 = 0.8, their mean 0.7 times 5; a sign apart the 0.8 wins
    assert combined("knots", [[[3.0]], [[4.0]]]) == [pytest.approx([3.5])]
    assert combined("knots", [[[3.0]], [[-4.0]]]) == [pytest.approx([-4.0])]


def test_wudi() -> None:
    """Numbers: sum (m - x)^2 is least at the mean; a step of Adam goes the learning rate towards it from the sum."""
    assert combined("wudi", [[[1.0]], [[3.0]]], solver="exact") == [near([2.0])]
    assert combined("wudi", [[[1.0]], [[3.0]]], steps=1, learning_rate=0.25) == [pytest.approx([3.75])]
    found = combined("wudi", [[[2.0, 0], [0, 0]], [[0.0, 0], [0, 3]]], solver="exact")
    assert [*found[0], *found[1]] == near([2, 0, 0, 3])


def test_that_zero_matrices_give_zero() -> None:
    for name in ("tsv_m", "iso_c", "iso_cts", "knots", "wudi"):
        found: Tensor = find(name)(torch.zeros(2, 3, 4))
        assert found.shape == (3, 4)
        assert not found.any()
