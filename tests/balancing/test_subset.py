"""The engine `subset`: G from a part of the rows, its weights on the whole batch."""

import pytest
import torch
from tests.balancing.references import check_scaler
from torch import Tensor, nn

import polytask
from polytask.balancing.report import BackwardReport
from polytask.core.errors import BadValue, Inconsistent, MissingInput, NotFinite

TASKS = ["a", "b", "c"]


def made(dtype: torch.dtype = torch.float64) -> nn.ModuleDict:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        parts = {"trunk": nn.Linear(5, 7), **{task: nn.Linear(7, 1) for task in TASKS}}
        return nn.ModuleDict(parts).to(dtype)


def losses_of(model: nn.ModuleDict, rows: int = 12, tasks: list[str] = TASKS) -> dict[str, Tensor]:
    x = torch.randn(12, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    hidden = model["trunk"](x[:rows].to(model["trunk"].weight.dtype)).tanh()
    return {task: (model[task](hidden) - TASKS.index(task)).square().mean() for task in tasks}


def jacobian(losses: dict[str, Tensor], parameter: Tensor) -> Tensor:
    return torch.stack([torch.autograd.grad(loss, parameter, retain_graph=True)[0] for loss in losses.values()])


@pytest.mark.parametrize("name", ["upgrad", "mgda", "gradnorm"])
@pytest.mark.parametrize("tasks", [TASKS, ["a", "c"], ["b"]])
def test_weights_of_the_part_on_the_whole_batch(name: str, tasks: list[str]) -> None:
    model, balancer = made(), polytask.balancer(name, tasks=TASKS, engine="subset")
    part, whole = losses_of(model, 4, tasks), losses_of(model, tasks=tasks)
    rows = [jacobian(part, parameter).flatten(1) for parameter in model["trunk"].parameters()]
    wanted = [jacobian(whole, parameter) for parameter in model["trunk"].parameters()]
    heads = {task: torch.autograd.grad(whole[task], model[task].weight, retain_graph=True)[0] for task in tasks}
    report = balancer.backward(whole, model, subset=part)
    if len(tasks) > 1:
        torch.testing.assert_close(report.gram, sum(row @ row.T for row in rows), rtol=1e-10, atol=1e-14)
    weights = torch.tensor([report.weights[task] for task in tasks], dtype=torch.float64)
    for parameter, stack in zip(model["trunk"].parameters(), wanted, strict=True):
        torch.testing.assert_close(parameter.grad, torch.einsum("t,t...->...", weights, stack))
    for task, grad in heads.items():
        torch.testing.assert_close(model[task].weight.grad, grad * (1.0 if len(tasks) > 1 else weights[0]))
    assert report.route == {"all": "subset"}


def test_the_whole_batch_as_a_part_is_exact() -> None:
    one, other = made(), made()
    polytask.balancer("upgrad", engine="subset").backward(losses_of(one), one, subset=losses_of(one))
    polytask.balancer("upgrad").backward(losses_of(other), other)
    for parameter, wanted in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, wanted.grad)


@pytest.mark.parametrize("large", [False, True])
def test_with_a_gradient_scaler(large: bool) -> None:
    def step(model: nn.ModuleDict, scaler: torch.amp.GradScaler | None) -> BackwardReport:
        whole, part = ({task: 9 * loss for task, loss in losses_of(model, rows).items()} for rows in (12, 4))
        return polytask.balancer("upgrad", engine="subset").backward(whole, model, subset=part, scaler=scaler)

    check_scaler(lambda: made(torch.float32), step, large=large)


def test_what_does_not_fit() -> None:
    model, engine = made(), polytask.balancer("upgrad", tasks=TASKS, engine="subset")
    whole = losses_of(model)
    part = losses_of(model, 4)
    two = {task: part[task] for task in ("a", "c")}
    infinite = {**part, "b": part["b"] * float("inf")}
    for error, match, call in [
        (MissingInput, "needs backward.losses, model, subset=", lambda: engine.backward(whole, model)),
        (MissingInput, "subset= lacks task 'b' at step 0", lambda: engine.backward(whole, model, subset=two)),
        (MissingInput, "has task 'b', which losses lacks", lambda: engine.backward(two, model, subset=part)),
        (NotFinite, "the gradient of task 'b' is not finite", lambda: engine.backward(whole, model, subset=infinite)),
        (Inconsistent, "subset= is read by engine 'subset', not by 'auto'",
         lambda: polytask.balancer("mgda").backward(whole, model, subset=part)),
    ]:  # fmt: skip
        with pytest.raises(error, match=match):
            call()
        assert all(parameter.grad is None for parameter in model.parameters())
    for rule in ("equal", "graddrop"):
        with pytest.raises(BadValue, match="engine is 'subset'"):
            polytask.balancer(rule, engine="subset")
