"""A step's batch in parts: the gradients are those of the whole batch, missing labels and all."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from tests.balancing.test_double_sampling import written
from tests.balancing.test_gradients import TASKS, batch, made
from torch import Tensor, nn

import polytask
from polytask.core.errors import Inconsistent, MissingInput, NotFinite, UnknownName

ROWS = {"a": range(12), "b": (0, 1, 2, 9), "c": (5, 6, 7, 8, 11)}  # that have a label: b and c in some parts only


def part_of(model: nn.Module, rows: Sequence[int], seed: int = 0) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Means over the labels of these rows, and how many there are."""
    x, y = batch(next(model.parameters()).dtype, seed)
    outputs, losses, counts = model(x), {}, {}
    for task in TASKS:
        present = [row for row in rows if row in ROWS[task]]
        if present:
            losses[task] = (outputs[task][present] - y[task][present]).square().mean()
            counts[task] = float(len(present))
    return losses, counts


PARTS = (range(4), range(4, 9), range(9, 12))


def stepped(
    balancer: polytask.balancer,
    model: nn.Module,
    seed: int = 0,
    scaler: torch.amp.GradScaler | None = None,
    **given: Any,
):
    """One step in three parts."""
    *first, last = PARTS
    for rows in first:
        losses, counts = part_of(model, rows, seed)
        balancer.accumulate(losses, model, counts=counts, scaler=scaler)
    losses, counts = part_of(model, last, seed)
    return balancer.backward(losses, model, counts=counts, scaler=scaler, **given)


@pytest.mark.parametrize("name", ["equal", "uncertainty", "upgrad", "gradnorm", "trimmed_mean", "moco", "excess_mtl"])
def test_parts_are_the_whole(name: str) -> None:
    """Over three steps, the state of the rule included."""
    parts, whole = made(), made()
    one, other = polytask.balancer(name, tasks=TASKS), polytask.balancer(name, tasks=TASKS)
    for step in range(3):
        parts.zero_grad()
        whole.zero_grad()
        report = stepped(one, parts, step)
        losses, counts = part_of(whole, range(12), step)
        wanted = other.backward(losses, whole, counts=counts)
        assert report.losses == pytest.approx(wanted.losses)
        assert report.weights == pytest.approx(wanted.weights)
        assert report.tasks == wanted.tasks == TASKS
        for (key, a), b in zip(written(parts).items(), written(whole).values(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12, msg=key)


def test_a_gradient_scaler_sees_scaled_gradients() -> None:
    scaled, plain = made(torch.float32), made(torch.float32)
    stepped(polytask.balancer("upgrad", tasks=TASKS), scaled, scaler=torch.amp.GradScaler("cpu", init_scale=2.0**10))
    stepped(polytask.balancer("upgrad", tasks=TASKS), plain)
    for a, b in zip(written(scaled).values(), written(plain).values(), strict=True):
        torch.testing.assert_close(a / 2.0**10, b, rtol=1e-4, atol=1e-6)


def test_an_infinite_loss_ends_the_step() -> None:
    model, balancer = made(), polytask.balancer("upgrad", tasks=TASKS)
    losses, counts = part_of(model, PARTS[0])
    balancer.accumulate({**losses, "b": losses["b"] * float("nan")}, model, counts=counts)
    losses, counts = part_of(model, PARTS[1])
    with pytest.raises(NotFinite, match="the loss of task 'b' is nan at step 0"):
        balancer.backward(losses, model, counts=counts)
    assert not written(model)
    fresh = made()
    balancer.backward(part_of(model, range(12))[0], model)  # nothing of the failed step is left
    polytask.balancer("upgrad", tasks=TASKS).backward(part_of(fresh, range(12))[0], fresh)
    torch.testing.assert_close(written(model), written(fresh))


def test_the_caller_says_what_is_shared() -> None:
    parts, whole = made(), made()
    one, other = (polytask.balancer("upgrad", tasks=TASKS) for _ in range(2))
    losses, counts = part_of(whole, range(12))
    other.backward(losses, whole, counts=counts, shared=["trunk.0.weight"])
    stepped(one, parts, shared=["trunk.0.weight"])
    torch.testing.assert_close(written(parts), written(whole), rtol=1e-9, atol=1e-12)
    with pytest.raises(UnknownName, match=r"shared=: no parameter 'trunk.0.weigth' \(did you mean 'trunk.0.weight'"):
        stepped(one, parts, shared=["trunk.0.weigth"])
    with pytest.raises(Inconsistent, match=r"rule 'equal' weighs the losses, .* leave shared= out"):
        stepped(polytask.balancer("equal", tasks=TASKS), parts, shared=["trunk.0.weight"])


def test_what_takes_no_parts() -> None:
    model = made()
    losses = part_of(model, range(12))[0]
    for options, match in (
        ({"rule": "modo"}, "'modo' reads independent batches"),
        ({"rule": "sharpness_aware"}, "'sharpness_aware' is a procedure"),
        ({"rule": "upgrad", "engine": "interval"}, "engine 'interval' takes no batch in parts"),
    ):
        with pytest.raises(Inconsistent, match=match):
            polytask.balancer(**options).accumulate(losses, model)
    balancer = polytask.balancer("upgrad")
    balancer.accumulate({"a": model.heads["a"].weight.sum()}, model)
    balancer.tasks = ["a", "b"]
    with pytest.raises(MissingInput, match="no parameter is reached by two"):
        balancer.backward({"b": model.heads["b"].weight.sum()}, model)
