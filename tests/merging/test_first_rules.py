"""Worked values of linear, task arithmetic, trim, elect and TIES, by hand, and the exact selection against a sort."""

import numpy as np
import pytest
import torch
from torch import Tensor

from polytask.core.blocks import BLOCK, bounds
from polytask.core.errors import BadValue
from polytask.core.noise import Noise
from polytask.core.state import Rule
from polytask.core.statistics import measure
from polytask.core.task_vectors import TaskVectors
from polytask.merging import selection
from polytask.merging.contract import find_method
from polytask.merging.memory import apply
from polytask.merging.selection import Largest, keep_largest

TASKS = ["a", "b", "c"]


def combined(name: str, *rows: list[float], **options: object) -> list[float]:
    stack = torch.tensor(rows, dtype=torch.float64)
    return Rule(name, TASKS[: len(rows)], **options)(TASKS[: len(rows)], stack).tolist()


def merged(stacks: dict[str, list[list[float]]], **options: object) -> dict[str, list[float]]:
    tensors = {name: torch.tensor(rows) for name, rows in stacks.items()}
    rows = len(next(iter(stacks.values())))
    found = apply(find_method("ties")(**options), TaskVectors(TASKS[:rows], tensors))
    return {name: value.tolist() for name, value in found.items()}


def test_linear_is_the_weighted_average() -> None:
    assert combined("linear", [1.0, 4.0], [3.0, -4.0]) == [2.0, 0.0]
    assert combined("linear", [1.0, 4.0], [3.0, -4.0], weights={"a": 3}) == [1.5, 2.0]  # (3 x + y) / 4
    assert combined("linear", [1.0, 4.0], [3.0, -4.0], weights=0.25, normalize=False) == [1.0, 0.0]
    with pytest.raises(BadValue, match="weights whose sum is not 0, or normalize: false"):
        combined("linear", [1.0], [3.0], weights={"a": 1, "b": -1})


def test_task_arithmetic_is_the_weighted_sum() -> None:
    assert combined("task_arithmetic", [1.0, 4.0], [3.0, -4.0]) == [4.0, 0.0]
    assert combined("task_arithmetic", [1.0, 4.0], [3.0, -4.0], weights={"b": -1}) == [-2.0, 8.0]


def test_elect_by_hand() -> None:
    """Sums 2, -1, 0 and 6: the elected values are {3}, {-2}, none and {1, 2, 3}."""
    rows = [[3.0, 1.0, 2.0, 1.0], [-1.0, -2.0, -2.0, 2.0], [0.0, 0.0, 0.0, 3.0]]
    assert combined("elect", *rows) == [3.0, -2.0, 0.0, 2.0]
    assert combined("elect", *rows, divide="none") == [3.0, -2.0, 0.0, 6.0]
    # Weighted by 2, 1, 1: 6 - 1 > 0; 2 - 2 = 0; 4 - 2 > 0; 2 + 2 + 3. Sums of what agrees: 6, none, 4, 7.
    weights = {"a": 2}
    assert combined("elect", *rows, weights=weights) == pytest.approx([6.0, 0.0, 4.0, 7 / 3])
    assert combined("elect", *rows, weights=weights, divide="weights") == [3.0, 0.0, 2.0, 7 / 4]
    # Plain votes as at first; the elected values are weighted: {2 x 3}, {-2}, none, {2 x 1, 2, 3}.
    assert combined("elect", *rows, weights=weights, elect="plain") == pytest.approx([6.0, -2.0, 0.0, 7 / 3])


def test_a_negative_weight_turns_the_direction_around() -> None:
    assert combined("elect", [3.0, -1.0], weights=-1, divide="weights") == [-3.0, 1.0]


def test_ties_trims_within_the_model_the_layer_or_the_tensor() -> None:
    """Half of four elements of the whole are two, both in x; half of each tensor is one."""
    stacks = {"x": [[4.0, -3.0]], "y": [[1.0, 2.0]]}
    assert merged(stacks, density=0.5) == {"x": [4.0, -3.0], "y": [0.0, 0.0]}
    assert merged(stacks, density=0.5, scope="tensor") == {"x": [4.0, 0.0], "y": [0.0, 2.0]}
    assert merged(stacks, density=1) == {"x": [4.0, -3.0], "y": [1.0, 2.0]}
    assert merged(stacks, density=0.1) == {"x": [4.0, 0.0], "y": [0.0, 0.0]}  # at least one


def test_ties_by_hand() -> None:
    """Kept: 4, -3 of the first; -5, 4 of the second. Signs of the sums: -, +, -; the means of what agrees."""
    stacks = {"x": [[4.0, 1.0, -3.0], [-5.0, 4.0, 1.0]]}
    assert merged(stacks, density=0.7) == {"x": [-5.0, 4.0, -3.0]}
    assert merged(stacks, density={"a": 0.7, "b": 1}, scale=0.5, divide="none") == {"x": [-2.5, 2.0, -1.5]}


def test_of_equal_magnitudes_those_of_the_lowest_index_stay() -> None:
    assert merged({"x": [[1.0, -2.0, 2.0, -2.0, 2.0]]}, density=0.4) == {"x": [0.0, -2.0, 2.0, 0.0, 0.0]}
    across = merged({"x": [[2.0, 1.0]], "y": [[-2.0, 2.0]]}, density=0.5)
    assert across == {"x": [2.0, 0.0], "y": [-2.0, 0.0]}


KINDS = {
    "normal": lambda x: x,
    "few values": lambda x: (2 * x).round(),
    "bfloat16": lambda x: (x * 0.01).bfloat16().float(),
    "zeros": lambda x: x * 0,
    "tiny": lambda x: x * 1e-30,
}


@pytest.mark.parametrize("remembered", [selection._REMEMBERED, 10])
@pytest.mark.parametrize("kind", KINDS)
def test_the_largest_are_those_of_a_stable_sort(kind: str, remembered: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several blocks, few enough elements that a sort can tell; with the ties remembered and counted again."""
    monkeypatch.setattr(selection, "_REMEMBERED", remembered)
    for n in (0, 1, 2, 5, 1000, 270_000):
        rows = KINDS[kind](torch.from_numpy(Noise(0, kind, n).normal(2 * n).reshape(2, n)).float())
        for fraction in (0.0, 0.1, 0.2, 0.5, 0.99, 1.0):
            found = [chosen(rows, [[fraction, fraction / 2], [0.3, fraction]], row, row) for row in range(2)]
            for row in range(2):
                count = int(np.floor(fraction * n + 1e-6))
                order = rows[row].abs().sort(descending=True, stable=True).indices[:count]
                wanted = torch.zeros(n).scatter(0, order, rows[row][order])
                assert torch.equal(found[row], wanted), f"{n} elements, fraction {fraction}, row {row}"


def chosen(rows: Tensor, fractions: list[list[float]], row: int, rank: int) -> Tensor:
    """One row's largest, block by block."""
    statistic = Largest(torch.tensor(fractions, dtype=torch.float64), "tensor")
    cuts = bounds(rows.shape[1:])
    state = measure(statistic, 2, lambda: (rows[:, start:stop] for start, stop in cuts))
    blocks = enumerate(cuts)
    return torch.cat(
        [keep_largest(rows[row, start:stop], statistic.at(state, block), row, rank) for block, (start, stop) in blocks]
    )


def test_a_rank_outside_the_sampled_window_is_found_all_the_same() -> None:
    """Every block but the sampled ones holds larger values, so that the sample points elsewhere."""
    rows = torch.from_numpy(Noise(0, "misleading").normal(40 * BLOCK)).float().view(40, BLOCK)
    rows[torch.arange(40) % 16 != 0] += 100
    rows = rows.view(1, -1)
    found = chosen(rows, [[0.3]], 0, 0)
    order = rows[0].abs().sort(descending=True, stable=True).indices[: int(0.3 * rows.numel())]
    assert torch.equal(found, torch.zeros(rows.numel()).scatter(0, order, rows[0][order]))


@pytest.mark.parametrize("fraction, kept", [(0.5, [0, 1, 2]), (0.34, [1, 2]), (0.01, [1]), (1.0, [0, 1, 2, 3, 4, 5])])
def test_the_largest_of_a_row_in_memory_break_ties_by_index(fraction: float, kept: list[int]) -> None:
    row = torch.tensor([1.0, -3, 2, 1, -1, 0], dtype=torch.float64)
    wanted = torch.zeros_like(row)
    wanted[kept] = row[kept]
    assert torch.equal(selection.largest(row, fraction), wanted)
    assert torch.equal(selection.largest(row.float(), fraction), wanted.float())
    assert torch.equal(selection.largest(0 * row, fraction), 0 * row)


def test_pcb_of_several_blocks_is_its_formula_on_the_whole() -> None:
    elements, tasks = 2 * BLOCK + 1000, 3
    values = Noise(0, "pcb").normal(tasks * elements).reshape(tasks, elements)
    stack = torch.from_numpy(values).float()
    X = stack.double()

    def share(products: Tensor, sharpness: float) -> Tensor:
        low, high = products.min(), products.max()
        return (sharpness * (products - low) / (high - low)).softmax(0)

    scores = torch.stack([share(x * x, tasks) * sum(share(x * other, 1) for other in X) for x in X])
    for row in scores:
        row[row.argsort(descending=True)[int(0.3 * elements) :]] = 0
    wanted = (scores * X).sum(0) / scores.sum(0).clamp(min=1e-300)
    found = apply(find_method("pcb")(density=0.3), TaskVectors(TASKS, {"x": stack}))["x"]
    assert len(bounds((elements,))) == 3
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-7)
