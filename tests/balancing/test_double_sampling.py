"""Rules on independent batches: X_a X_b^T, the last batch's update, every label in the private parameters' mean."""

import copy
from functools import partial

import pytest
import torch
from tests.balancing.references import check_saved, jacobian, written
from tests.balancing.test_gradients import TASKS, is_shared, losses_of, made
from torch import Tensor, nn

import polytask
from polytask.core.errors import BadValue, MissingInput, NotFinite
from polytask.core.state import Rule

RULES = ["modo", "sdmgrad"]


def rows(stacks: dict[str, Tensor]) -> Tensor:
    return torch.cat([stack.flatten(1) for name, stack in stacks.items() if is_shared(name)], dim=1)


def batches(model: nn.Module, number: int = 3, first: int = 0) -> list[dict[str, Tensor]]:
    return [losses_of(model, seed=first + place) for place in range(number)]


@pytest.mark.parametrize("number", [2, 3])
@pytest.mark.parametrize("name", RULES)
def test_the_last_batch_is_combined_with_weights_of_the_first_two(name: str, number: int) -> None:
    model = made()
    J = [jacobian(losses, dict(model.named_parameters())) for losses in batches(model, number)]
    weights = Rule(name, TASKS)(TASKS, rows(J[0]) @ rows(J[1]).T)
    report = polytask.balancer(name).backward(batches(model, number), model)
    torch.testing.assert_close(torch.tensor(list(report.weights.values()), dtype=torch.float64), weights)
    for parameter, grad in written(model).items():
        combined = torch.einsum("t,t...->...", weights, J[-1][parameter])
        mean = sum(stacks[parameter].sum(0) for stacks in J) / number
        torch.testing.assert_close(grad, combined if is_shared(parameter) else mean, rtol=1e-9, atol=1e-12)


def test_labels_count_the_same_in_every_batch() -> None:
    """Batches with 1, 2 and 3 labels of task a: its own gradient is the mean over the six; no weight changes."""
    model, even = made(), made()
    counts = [{task: float(place + 1) if task == "a" else 4.0 for task in TASKS} for place in range(3)]
    J = [jacobian(losses, dict(model.named_parameters())) for losses in batches(model)]
    report = polytask.balancer("modo").backward(batches(model), model, counts=counts)
    same = polytask.balancer("modo").backward(batches(even), even)
    assert list(report.weights.values()) == pytest.approx(list(same.weights.values()), rel=1e-12)
    mean = sum((place + 1) * J[place]["heads.a.weight"].sum(0) for place in range(3)) / 6
    torch.testing.assert_close(model.heads["a"].weight.grad, mean)
    torch.testing.assert_close(model.trunk[0].weight.grad, even.trunk[0].weight.grad)
    losses = [float(losses["a"].detach()) for losses in batches(model)]
    assert report.losses["a"] == pytest.approx((losses[0] + 2 * losses[1] + 3 * losses[2]) / 6)


def test_a_task_that_one_batch_lacks_is_absent() -> None:
    model, without = made(), made()
    given = batches(model)
    del given[1]["b"]
    report = polytask.balancer("modo", tasks=TASKS).backward(given, model)
    assert report.tasks == ["a", "c"]
    others = [{task: losses[task] for task in ("a", "c")} for losses in batches(without)]
    polytask.balancer("modo", tasks=TASKS).backward(others, without)
    assert model.heads["b"].weight.grad is None
    assert all(torch.equal(a, b) for a, b in zip(written(model).values(), written(without).values(), strict=True))


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("groups", ["all", "tensor"])
def test_a_saved_balancer_goes_on_bit_for_bit(name: str, groups: str) -> None:
    model = made()
    made_anew = partial(polytask.balancer, name, groups=groups)
    check_saved(made_anew, model, lambda step: batches(model, first=3 * step), moved=name == "modo" or groups != "all")


def test_a_priority_multiplies_the_loss() -> None:
    """sdmgrad takes it as its preferences instead."""
    model, scaled = made(), made()
    priority = {"a": 3.0, "b": 1.0, "c": 2.0}  # over their mean: 1.5, 0.5 and 1
    polytask.balancer("modo", priority=priority).backward(batches(model), model)
    factors = {"a": 1.5, "b": 0.5, "c": 1.0}
    given = [{task: loss * factors[task] for task, loss in losses.items()} for losses in batches(scaled)]
    polytask.balancer("modo").backward(given, scaled)
    torch.testing.assert_close(model.block.weight.grad, scaled.block.weight.grad)


def test_a_gradient_scaler_changes_nothing() -> None:
    model, plain = made(torch.float32), made(torch.float32)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    report = polytask.balancer("modo", gamma=1.0).backward(batches(model), model, scaler=scaler)
    wanted = polytask.balancer("modo", gamma=1.0).backward(batches(plain), plain)
    assert list(report.weights.values()) == pytest.approx(list(wanted.weights.values()), rel=1e-6)
    for a, b in zip(written(model).values(), written(plain).values(), strict=True):
        torch.testing.assert_close(a / 2.0**10, b)


@pytest.mark.parametrize("place", range(3))
def test_an_infinite_gradient_names_its_task(place: int) -> None:
    """The root of 0 has one; whichever batch it is in, nothing is written."""
    model = made()
    given = batches(model)
    given[place]["b"] = given[place]["b"] * 0 + (model.block.weight.sum() * 0).sqrt()
    balancer = polytask.balancer("modo")
    before = copy.deepcopy(balancer.state_dict())
    with pytest.raises(NotFinite, match="the gradient of task 'b' is not finite at step 0"):
        balancer.backward(given, model)
    assert not written(model)
    assert balancer.state_dict()["step"] == before["step"] == 0


def test_what_does_not_fit_is_refused() -> None:
    model = made()
    with pytest.raises(MissingInput, match=r"'modo' reads two or three independent batches: backward\(\[losses_a"):
        polytask.balancer("modo").backward(losses_of(model), model)
    with pytest.raises(MissingInput, match="two or three"):
        polytask.balancer("modo").backward(batches(model, 1), model)
    with pytest.raises(BadValue, match="losses is 'list'; allowed: a mapping"):
        polytask.balancer("upgrad").backward(batches(model), model)
    with pytest.raises(BadValue, match=r"counts is .*; allowed: 3 mappings"):
        polytask.balancer("modo").backward(batches(model), model, counts=dict.fromkeys(TASKS, 1.0))
    for engine in ("representation", "interval"):
        with pytest.raises(BadValue, match="exact: the rule reads several batches"):
            polytask.balancer("modo", engine=engine)
    assert not written(model)


@pytest.mark.parametrize("scale, wanted", [("sum", 3.0), ("mean", 1.0)])
def test_the_scale_can_be_chosen(scale: str, wanted: float) -> None:
    model, published = made(), made()
    polytask.balancer("modo", scale=scale).backward(batches(model), model)
    polytask.balancer("modo").backward(batches(published), published)
    torch.testing.assert_close(model.block.weight.grad, wanted * published.block.weight.grad)


def test_unit_norm_is_that_of_the_update() -> None:
    model = made()
    polytask.balancer("modo", scale="unit").backward(batches(model), model)
    square = sum(float(grad.square().sum()) for name, grad in written(model).items() if is_shared(name))
    assert square == pytest.approx(1.0)
