"""What several engines' tests compare with: gradients taken one by one, and steps under a gradient scaler."""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from polytask.balancing import Balancer
from polytask.balancing.report import BackwardReport


def jacobian(losses: Mapping[str, Tensor], named: Mapping[Any, Tensor]) -> dict[Any, Tensor]:
    """Parameter -> [T, *shape], by autograd one loss at a time; zeros where a loss does not reach."""
    rows = [
        torch.autograd.grad(loss, list(named.values()), retain_graph=True, allow_unused=True)
        for loss in losses.values()
    ]
    return {
        name: torch.stack([torch.zeros_like(p) if row[i] is None else row[i].to_dense() for row in rows])
        for i, (name, p) in enumerate(named.items())
    }


def written(model: nn.Module) -> dict[str, Tensor]:
    """The gradients that there are."""
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


Step = Callable[[Any, torch.amp.GradScaler | None], BackwardReport]


def check_scaler(made: Callable[[], nn.Module], step: Step, *, large: bool = False) -> None:
    """A scaler changes nothing but the scale; one that is too large sees the overflow itself.

    Args:
        made: the model, with the same weights each time, in single precision.
        step: writes its gradients.
        large: whether the gradients do not fit the scale.
    """
    grads = []
    for scaler in (None, torch.amp.GradScaler("cpu", init_scale=3e38 if large else 1024.0)):
        model = made()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        report = step(model, scaler)
        assert report.skipped == (scaler is not None and large)
        if scaler is not None:
            scaler.unscale_(optimizer)
            assert any(float(found) for found in scaler._found_inf_per_device(optimizer).values()) == large
        grads.append([parameter.grad for parameter in model.parameters()])
    for plain, scaled in zip(*grads, strict=True) if not large else []:
        torch.testing.assert_close(scaled, plain)


def check_saved(
    made: Callable[[], Balancer], model: nn.Module, losses: Callable[[int], Any], *, moved: bool = True
) -> None:
    """A balancer that is saved after three steps and loaded goes on bit for bit.

    Args:
        made: the balancer.
        losses: of the model, in a step.
        moved: whether a fresh balancer writes something else in the last step.
    """
    first, second = made(), made()
    for step in range(3):
        first.backward(losses(step), model)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    results = []
    for balancer in (first, second, made()):
        model.zero_grad()
        balancer.backward(losses(9), model)
        results.append(written(model))
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])
    assert all(torch.equal(results[0][name], results[2][name]) for name in results[0]) != moved
