"""Worked values of the transforms and of the methods made of them, by hand or against plain float64 NumPy."""

import numpy as np
import pytest
import torch
from torch import Tensor

from polytask.core.errors import BadValue, MissingInput
from polytask.core.names import METHODS, RULES
from polytask.core.noise import Noise
from polytask.core.task_vectors import TaskVectors
from polytask.merging.contract import Pipeline, find_method, find_transform, use_rule, use_transform
from polytask.merging.memory import apply
from polytask.merging.selection import largest
from polytask.merging.transforms.magprune import ascending

TASKS = ["a", "b", "c"]


def normal(*shape: int, key: int = 0) -> Tensor:
    return torch.from_numpy(Noise(0, key).normal(int(np.prod(shape)))).float().view(*shape)


def alone(name: str, values: Tensor, **options: object) -> Tensor:
    """One task's vector after a transform."""
    pipeline = Pipeline((use_transform(name, **options),), use_rule("passthrough"))
    return apply(pipeline, TaskVectors(["a"], {"x": values[None]}), depths={"x": 0.5})["x"]


def alone_of(noise: Noise, length: int, density: float) -> np.ndarray:
    """What MagPrune keeps where every element has the same probability."""
    rows = torch.ones(1, 1, length)
    found = find_transform("magprune").function(rows, noise=(noise,), density=density, epsilon=0.0, rescale="none")
    return found[0, 0].numpy() != 0


def merged(name: str, stack: Tensor, **options: object) -> Tensor:
    vectors = TaskVectors(TASKS[: len(stack)], {"x": stack})
    return apply(find_method(name)(**options), vectors, seed=3, depths={"x": 0.5})["x"]


def numbers(noise: Noise, n: int) -> np.ndarray:
    """Both halves of n numbers of 32 bits."""
    return noise.upper(n).astype(np.int64) << 16 | (noise.child("lower").raw(n) >> np.uint64(48)).astype(np.int64)


class TestDrop:
    def test_keeps_where_the_noise_is_below_the_density_and_divides_by_it(self) -> None:
        values, noise = normal(2, 1000), (Noise(1, "a"), Noise(1, "b"))
        density = torch.tensor([0.25, 1.0], dtype=torch.float64)
        found = find_transform("drop").function(values.clone(), noise=noise, density=density)
        kept = numbers(noise[0], 1000) < 0.25 * 2**32
        assert np.array_equal(found[0].numpy(), np.where(kept, values[0].numpy() * 4, 0))
        assert torch.equal(found[1], values[1])
        plain = find_transform("drop").function(values.clone(), noise=noise, density=density, rescale="none")
        assert np.array_equal(plain[0].numpy(), np.where(kept, values[0].numpy(), 0))

    def test_keeps_the_expectation(self) -> None:
        """A share of 0.1 of 200,000 ones: 20,000 of value 10, with a standard deviation of 134."""
        found = alone("drop", torch.ones(200_000), density=0.1)
        assert abs(int((found > 0).sum()) - 20_000) < 5 * 134
        assert torch.equal(found[found > 0], torch.full_like(found[found > 0], 10))


class TestMagPrune:
    def test_order(self) -> None:
        """Places count from the end of all rows; of equal magnitudes the lower index is the larger."""
        rows = np.array([[1.0, -3.0, 2.0, 3.0], [0.0, -0.0, -1.0, 0.0]], dtype=np.float32)
        assert ascending(rows).tolist() == [
            [7 - place for place in [0, 2, 3, 1]],
            [7 - place for place in [7, 5, 4, 6]],
        ]

    def test_numbers_at_the_edge_are_looked_at_whole(self) -> None:
        """About six of the numbers have the edge's upper half: there the lower halves decide."""
        noise, length = Noise(2, "a"), 400_000
        share = (int(noise.upper(1)[0]) * 2**16 + 2**15) / 2**32
        for density in (share, share + 2.0**-32):
            found = alone_of(noise, length, density)
            assert np.array_equal(found, numbers(noise, length) < round(density * 2**32))

    @pytest.mark.parametrize("span, wanted", [
        ("steps", [0.4, 0.7, 0.5, 0.6]),  # 0.5 + 0.4 / 2 - 0.4 r / 4 for the ranks 3, 0, 2, 1
        ("ends", [0.3, 0.7, 0.3 + 0.4 / 3, 0.3 + 0.8 / 3]),
    ])  # fmt: skip
    def test_probabilities(self, span: str, wanted: list[float]) -> None:
        rows = torch.tensor([1.0, -3.0, 2.0, 3.0]).expand(1, 20_000, 4).clone()
        noise = Noise(1, "a")
        found = find_transform("magprune").function(rows.clone(), noise=(noise,), density=0.5, epsilon=0.4, span=span)[
            0
        ]
        shares = (found != 0).double().mean(0).numpy()
        assert np.abs(shares - wanted).max() < 5 * np.sqrt(0.25 / 20_000)
        kept = numbers(noise, 80_000).reshape(-1, 4) < np.array(wanted) * 2**32
        reference = np.where(kept, rows[0].numpy() / np.array(wanted), 0)
        np.testing.assert_allclose(found.numpy(), reference, rtol=3e-7)

    def test_a_row_of_one_element_has_the_density_or_the_upper_end(self) -> None:
        for span, share in (("ends", 0.5), ("steps", 0.6)):
            found = alone("magprune", torch.ones(5000, 1), density=0.5, epsilon=0.2, span=span)
            assert torch.unique(found).tolist() == pytest.approx([0.0, 1 / share])

    def test_a_range_beyond_0_and_1_is_refused(self) -> None:
        for density, epsilon in ((0.1, 0.2), (0.95, 0.2)):
            with pytest.raises(BadValue, match=r"epsilon is 0\.2; allowed: at most"):
                alone("magprune", torch.ones(3, 2), density=density, epsilon=epsilon)
        assert torch.equal(alone("magprune", torch.ones(3, 2), density=1, epsilon=0), torch.ones(3, 2))


class TestTwoSided:
    def test_both_ends_go(self) -> None:
        values = torch.tensor([1.0, -2, 3, -4, 5, -6, 7, -8, 9, -10])
        found = alone("two_sided", values, density=0.5, outliers=0.2)
        assert found.tolist() == [0, 0, 0, -4, 5, -6, 7, -8, 0, 0]
        assert torch.equal(alone("two_sided", values, density=1, outliers=0), values)

    def test_equal_magnitudes_count_by_index_and_one_is_always_kept(self) -> None:
        """Of five equal ones the first is the largest (0.2 of five), the next two are kept."""
        found = alone("two_sided", torch.tensor([1.0, -1, 1, 1, 1]), density=0.4, outliers=0.2)
        assert found.tolist() == [0, -1, 1, 0, 0]
        assert alone("two_sided", torch.tensor([3.0])).tolist() == [3.0]
        assert alone("two_sided", torch.tensor([3.0, 5.0])).tolist() == [0.0, 5.0]

    def test_more_than_everything_is_refused(self) -> None:
        with pytest.raises(BadValue, match=r"outliers is 0.2; allowed: at most 1 - density, 0.1"):
            alone("two_sided", torch.ones(3), density=0.9, outliers=0.2)


def test_largest_in_memory_is_trim_of_a_tensor() -> None:
    """With ties, which go by index: values of half precision have many."""
    values = (normal(4, 700) * 4).round() / 4
    for density in (1e-9, 0.1, 0.29, 0.5, 1.0):
        for row in values:
            assert torch.equal(largest(row, density), alone("trim", row, density=density, scope="tensor"))
    assert largest(torch.zeros(0), 0.5).shape == (0,)


def test_select_keeps_the_positions_of_largest_variance() -> None:
    """Variances 0, 1, 4 and 0.25; one position of the four is 0.25 of them."""
    stack = torch.tensor([[1.0, 1, 2, 1], [1.0, -1, -2, 2]])
    weights = {"a": 1.0, "b": 0.0}
    rule = use_rule("task_arithmetic", weights=weights)
    found = {
        density: apply(
            Pipeline((use_transform("select", density=density),), rule), TaskVectors(["a", "b"], {"x": stack})
        )["x"].tolist()
        for density in (0.25, 0.5, 0.01)
    }
    assert found == {0.25: [0, 0, 2, 0], 0.5: [0, 1, 2, 0], 0.01: [0, 0, 2, 0]}


def test_lines_scales_by_depth() -> None:
    assert alone("lines", torch.tensor([4.0]), first=0.25, slope=0.5).tolist() == [2.0]  # 0.25 + 0.5 x 0.5
    pipeline = Pipeline((use_transform("lines"),), use_rule("passthrough"))
    with pytest.raises(MissingInput, match="needs the depth of every tensor"):
        apply(pipeline, TaskVectors(["a"], {"x": torch.ones(1, 2)}))


def test_layer_pruning_cuts_each_tasks_shortest_layers() -> None:
    """Mean squares by layer: x 4 and 1, y 1 and 4 (of the task a and b), z 2.5 for both, over two tensors."""
    stacks = {
        "x": torch.tensor([[2.0, -2.0], [1.0, 1.0]]),
        "y": torch.tensor([[1.0, -1.0], [2.0, 2.0]]),
        "z1": torch.tensor([[1.0], [-2.0]]),
        "z2": torch.tensor([[-2.0], [1.0]]),
    }
    groups = {"x": "x", "y": "y", "z1": "z", "z2": "z"}

    def pruned(share: object) -> dict[str, list[float]]:
        found = apply(find_method("lwptv")(pruned=share), TaskVectors(["a", "b"], stacks), groups=groups)
        return {name: value.tolist() for name, value in found.items()}

    whole = {"x": [3, -1], "y": [3, 1], "z1": [-1], "z2": [-1]}
    assert pruned(0) == pruned(0.33) == whole
    assert pruned(0.34) == {"x": [2, -2], "y": [2, 2], "z1": [-1], "z2": [-1]}  # a third: one layer of each
    assert pruned({"a": 0.7, "b": 0.0}) == {"x": [3, -1], "y": [2, 2], "z1": [-2], "z2": [1]}


def test_sce_by_hand() -> None:
    """All positions: calculate_erase's example, through the statistics."""
    stack = torch.tensor([[2.0, -1], [1.0, 2]])
    assert merged("sce", stack, density=1).tolist() == pytest.approx([1.5, 1.0])
    # the second position alone: squares 1 and 4, coefficients 0.2 and 0.8, the sum is positive
    assert merged("sce", stack, density=0.5).tolist() == pytest.approx([0.0, 1.6])


def test_breadcrumbs_dare_and_della_are_their_transforms_and_then_a_sum_or_an_election() -> None:
    stack = normal(3, 20, 30)
    for method, transform, options in (
        ("breadcrumbs", "two_sided", {"density": 0.5, "outliers": 0.1}),
        ("dare_linear", "drop", {"density": 0.3}),
        ("della_linear", "magprune", {"density": 0.3, "epsilon": 0.1}),
    ):
        steps = (use_transform(transform, **options),)
        vectors = TaskVectors(TASKS, {"x": stack})
        for name, rule in ((method, "task_arithmetic"), (method.removesuffix("_linear"), "elect")):
            name = {"breadcrumbselect": "breadcrumbs_ties", "dareelect": "dare_ties"}.get(name + rule, name)
            wanted = apply(Pipeline(steps, use_rule(rule)), vectors, seed=3)["x"]
            assert torch.equal(merged(name, stack, **options), wanted)


def test_nuslerp_is_slerp_of_tensors_or_of_their_lines() -> None:
    stack = normal(2, 6, 5)
    vectors = TaskVectors(["a", "b"], {"x": stack})
    assert torch.equal(
        merged("nuslerp", stack, t=0.3), apply(find_method("slerp")(t=0.3, groups="tensor"), vectors)["x"]
    )
    for along in ("row", "column"):
        rule = use_rule("slerp_lines", t=0.3, along=along)
        assert torch.equal(merged("nuslerp", stack, t=0.3, along=along), apply(Pipeline((), rule), vectors)["x"])


LONG = ("doge", "wudi")  # hundreds of steps in float32: compared with their references in test_matrix_rules


@pytest.mark.parametrize("name", [*METHODS, *(name for name in RULES if "merging" in RULES[name] and name not in LONG)])
def test_float32_is_within_a_unit_in_the_last_place(name: str) -> None:
    """Of the same merge in float64, on nearly every element of base + result; in bfloat16 it is then the same.

    Deltas are 3 % of the weights; what differs are elements in which the sum is far smaller than its terms.
    """
    pipeline = find_method(name)()
    tasks = pipeline.tasks or 3
    stacks = {"x": normal(tasks, 60, 50, key=1), "y": normal(tasks, 400, key=2)}
    base = {key: 30 * normal(*stack.shape[1:], key=3) for key, stack in stacks.items()}
    if pipeline.of == "models":
        stacks = {key: stack + base[key] for key, stack in stacks.items()}

    def result(dtype: torch.dtype) -> dict[str, np.ndarray]:
        vectors = TaskVectors(TASKS[:tasks], {key: stack.to(dtype) for key, stack in stacks.items()})
        given = {key: value.to(dtype) for key, value in base.items()}
        found = apply(pipeline, vectors, base=given, seed=1, depths=dict.fromkeys(stacks, 0.5))
        return {key: (found[key] if pipeline.of == "models" else given[key] + found[key]).numpy() for key in found}

    single, double = result(torch.float32), result(torch.float64)
    for key, wanted in double.items():
        unit = np.spacing(np.abs(wanted).astype(np.float32)).astype(np.float64)
        assert (np.abs(single[key] - wanted) <= unit).mean() > 0.9, (name, key)
        written, exact = (torch.from_numpy(values).bfloat16() for values in (single[key], wanted))
        assert (written == exact).double().mean() > 0.998, (name, key)
