"""The balancer's options, state, and what it refuses; a refused step leaves .grad as it was."""

import copy
import math
import subprocess
import sys
from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple

import pytest
import torch
from jaxtyping import Float
from torch import Tensor, nn

import polytask
from polytask.core.constraints import Interval, parameters_of
from polytask.core.errors import (
    BadValue,
    CheckpointError,
    GraphError,
    Inconsistent,
    MissingInput,
    NotFinite,
    UnknownName,
)
from polytask.core.rules import RuleSpec, find, rule_names

TASKS = ["a", "b", "c"]
ANY_NUMBER = [name for name in rule_names() if find(name).tasks is None]  # the others merge one or two models


def made() -> nn.ModuleDict:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        parts = {"trunk": nn.Linear(5, 7), **{task: nn.Linear(7, 1) for task in TASKS}}
        return nn.ModuleDict(parts).double()


def losses_of(model: nn.ModuleDict, step: int = 0, tasks: list[str] = TASKS) -> dict[str, Tensor]:
    x = torch.randn(9, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
    hidden = model["trunk"](x).tanh()
    return {task: (model[task](hidden) - TASKS.index(task)).square().mean() for task in tasks}


OPTIONS: dict[str, dict[str, Any]] = {"maxl": {"generator": "c"}}  # as if head c made labels


def balancer_of(name: str, **options: Any) -> Any:
    return polytask.balancer(name, **OPTIONS.get(name, {}), **options)


def given(model: nn.ModuleDict, step: int = 0, tasks: list[str] = TASKS) -> dict[str, Any]:
    """What some rules need besides the losses."""

    def forward(parameters: Mapping[str, Tensor] | None = None, batch: int | str = 0) -> dict[str, Tensor]:
        p = {**dict(model.named_parameters()), **(parameters or {})}
        number = 1000 + step if batch == "validation" else step
        x = torch.randn(9, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(number))
        hidden = (x @ p["trunk.weight"].T + p["trunk.bias"]).tanh()
        outputs = {task: hidden @ p[f"{task}.weight"].T + p[f"{task}.bias"] for task in tasks}
        return {task: (outputs[task] - TASKS.index(task)).square().mean() for task in tasks}

    return {"forward": forward, "counts": dict.fromkeys(tasks, 9.0)}


def backward(
    balancer: Any,
    losses: dict[str, Tensor],
    model: nn.ModuleDict,
    step: int = 0,
    tasks: list[str] = TASKS,
) -> Any:
    """With all that some rules need; these losses are those of the last batch where a rule reads several."""
    more = given(model, step, tasks)
    if balancer.batches == 1:
        return balancer.backward(losses, model, **more)
    others = [losses_of(model, 100 + step, tasks), losses_of(model, 200 + step, tasks)]
    return balancer.backward([*others, losses], model, **{**more, "counts": [more["counts"]] * 3})


def grads(model: nn.Module) -> dict[str, Tensor | None]:
    return {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}


def same(a: dict[str, Tensor | None], b: dict[str, Tensor | None]) -> bool:
    pairs = zip(a.values(), b.values(), strict=True)
    return all(torch.equal(x, y) if x is not None and y is not None else x is y for x, y in pairs)


@pytest.mark.parametrize("name", ANY_NUMBER)
def test_a_resumed_balancer_takes_the_same_steps(name: str) -> None:
    """With a task absent now and then, so that its state has to wait."""
    present = [TASKS, ["a", "c"], ["b"], TASKS, ["b", "c"], TASKS]

    def run(stop: int | None) -> nn.ModuleDict:
        model, balancer = made(), balancer_of(name, tasks=TASKS)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        for step, tasks in enumerate(present):
            if step == stop:
                saved = copy.deepcopy(balancer.state_dict())
                balancer = balancer_of(name, tasks=TASKS)
                balancer.load_state_dict(saved)
            optimizer.zero_grad()
            backward(balancer, losses_of(model, step, tasks), model, step, tasks)
            optimizer.step()
            balancer.after_step(losses_of(model, step, tasks) if balancer.looks_again else None)
            balancer.after_epoch()
        return model

    straight = dict(run(None).named_parameters())
    for stop in (1, 4):
        assert all(torch.equal(p, straight[n]) for n, p in run(stop).named_parameters())


def test_the_state_of_absent_tasks_waits() -> None:
    balancer = polytask.balancer("uncertainty", tasks=TASKS, learning_rate=0.1)
    model = made()
    balancer.backward(losses_of(model), model)
    before = balancer.state_dict()["rules"]["all"]
    for step in range(3):
        balancer.backward(losses_of(model, step, ["a", "c"]), model)
    after = balancer.state_dict()["rules"]["all"]
    for key in before:
        if key != "step":
            assert before[key][1] == after[key][1]
            assert before[key][0] != after[key][0]


def test_a_task_without_labels_is_absent() -> None:
    one, other = made(), made()
    losses = losses_of(one)
    losses["b"] = losses["b"] * math.nan
    report = polytask.balancer("upgrad", tasks=TASKS).backward(losses, one, counts={"a": 4, "b": 0, "c": 2})
    polytask.balancer("upgrad", tasks=TASKS).backward(losses_of(other, tasks=["a", "c"]), other)
    assert report.tasks == ["a", "c"]
    assert same(grads(one), grads(other))


@pytest.mark.parametrize("scale, factor", [("published", 1.0), ("mean", 1.0), ("sum", 3.0)])
def test_scale_is_a_factor_on_the_shared_gradient(scale: str, factor: float) -> None:
    model, plain = made(), made()
    polytask.balancer("upgrad", scale=scale).backward(losses_of(model), model)
    polytask.balancer("upgrad").backward(losses_of(plain), plain)
    torch.testing.assert_close(model["trunk"].weight.grad, factor * plain["trunk"].weight.grad)
    torch.testing.assert_close(model["a"].weight.grad, plain["a"].weight.grad)


def test_unit_scale() -> None:
    model = made()
    polytask.balancer("pcgrad", scale="unit").backward(losses_of(model), model)
    norm = sum(p.grad.square().sum() for p in model["trunk"].parameters()).sqrt()
    assert float(norm) == pytest.approx(1.0)


def test_priority_multiplies_losses_and_is_a_preference_where_one_is_published() -> None:
    model = made()
    report = polytask.balancer("equal", priority={"a": 4.0}).backward(losses_of(model), model)
    assert list(report.weights.values()) == [2.0, 0.5, 0.5]
    one, other = made(), made()
    weighted = {t: loss * f for (t, loss), f in zip(losses_of(one).items(), (2.0, 0.5, 0.5), strict=True)}
    polytask.balancer("mgda").backward(weighted, one)
    polytask.balancer("mgda", priority={"a": 4.0}).backward(losses_of(other), other)
    torch.testing.assert_close(one["trunk"].weight.grad, other["trunk"].weight.grad)


def test_priority_does_not_depend_on_who_is_present() -> None:
    model = made()
    balancer = polytask.balancer("equal", tasks=TASKS, priority={"a": 4.0})
    report = balancer.backward(losses_of(model, tasks=["a", "b"]), model)
    assert report.weights == {"a": 2.0, "b": 0.5}


class Best(NamedTuple):
    """The lowest loss seen after a step."""

    lowest: Float[Tensor, "T"]


def test_a_rule_may_look_at_the_losses_after_the_step() -> None:
    def chase(losses: Tensor, state: Best, *, power: Annotated[float, Interval(0)] = 1.0) -> tuple[Tensor, Best]:
        return (losses / state.lowest) ** power, state

    spec = RuleSpec(
        name="chase", function=chase, source="this test", needs=("losses",), granularity="global", returns="weights",
        scale="sum", claims=frozenset(), parameters=parameters_of(chase),
        init=lambda tasks: Best(torch.ones(tasks, dtype=torch.float64)),
        after_step=lambda state, losses: Best(torch.minimum(state.lowest, losses)),
    )  # fmt: skip
    parameter = torch.ones((), requires_grad=True)
    balancer = polytask.balancer(spec, tasks=["a", "b"])
    assert balancer.backward({"a": parameter, "b": 2 * parameter}).weights == {"a": 1.0, "b": 2.0}
    balancer.after_step({"b": 0.5 * parameter})
    assert balancer.backward({"a": parameter, "b": 2 * parameter}).weights == {"a": 1.0, "b": 4.0}
    with pytest.raises(MissingInput, match="looks at the losses after the step"):
        balancer.after_step()


def test_losses_after_the_step_carry_the_priority_of_those_before() -> None:
    """FAMO's weights with priorities are those for losses that were multiplied beforehand, times the priorities."""
    priority = {"a": 1.5, "b": 0.5}

    def weights(options: dict[str, Any], factors: dict[str, float]) -> dict[str, float]:
        model, balancer = made(), polytask.balancer("famo", tasks=["a", "b"], **options)
        for step in range(3):
            losses = {task: factors[task] * loss for task, loss in losses_of(model, step, ["a", "b"]).items()}
            report = balancer.backward(losses, model)
            balancer.after_step({"a": 0.5 * losses["a"], "b": 0.9 * losses["b"]})
        return report.weights

    multiplied = weights({}, priority)
    wanted = {task: priority[task] * multiplied[task] for task in priority}
    assert weights({"priority": priority}, {"a": 1.0, "b": 1.0}) == pytest.approx(wanted, rel=1e-9)


def test_a_parameter_by_task_follows_the_tasks_of_the_first_step() -> None:
    model = made()
    balancer = polytask.balancer("static", weights={"c": 3.0})
    assert balancer.backward(losses_of(model), model).weights == {"a": 1.0, "b": 1.0, "c": 3.0}
    assert balancer.backward(losses_of(model, 1, ["c", "b"]), model).weights == {"b": 1.0, "c": 3.0}
    for tasks in (TASKS, None):
        with pytest.raises(UnknownName, match=r"rule 'static', weights: no task 'd'"):
            polytask.balancer("static", tasks=tasks, weights={"d": 3.0}).backward(losses_of(model), model)


def refused(error: type[Exception], match: str, model: nn.Module, call: Any) -> None:
    """The call raises, and .grad is what it was."""
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 0.25)
    before = grads(model)
    with pytest.raises(error, match=match):
        call()
    assert same(before, grads(model))


@pytest.mark.parametrize("name", ANY_NUMBER)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite(name: str, value: float) -> None:
    model, balancer = made(), balancer_of(name)
    backward(balancer, losses_of(model), model)
    losses = losses_of(model)
    losses["b"] = losses["b"] * value
    match = "the loss of task 'b' is (nan|inf) at step 1"
    refused(NotFinite, match, model, lambda: backward(balancer, losses, model))


@pytest.mark.parametrize("name", ANY_NUMBER)
@pytest.mark.parametrize("where", ["trunk", "b"])
def test_a_gradient_that_is_not_finite(name: str, where: str) -> None:
    model = made()
    losses = losses_of(model)
    losses["b"] = (
        losses["b"] + (model[where].weight.sum() * 0.0).clamp(min=0).sqrt()
    )  # the root's slope at 0 is infinite
    spec = balancer_of(name).spec
    culprit = f"'{where}.weight'" if spec.weighs_losses else "task(s a, b, c| 'b')"
    match = f"the gradient of {culprit} is not finite at step 0"
    refused(NotFinite, match, model, lambda: backward(balancer_of(name), losses, model))


def test_finite_gradients_whose_sum_overflows() -> None:
    parameter = torch.nn.Parameter(torch.zeros(4))
    losses = {task: 1.5e38 * parameter.sum() for task in "ab"}
    polytask.balancer("equal").backward(losses, [parameter])
    assert parameter.grad is not None
    assert parameter.grad.tolist() == pytest.approx([3e38] * 4)


@pytest.mark.parametrize("name", ANY_NUMBER)
def test_parameters_changed_between_forward_and_backward(name: str) -> None:
    model = made()
    losses = losses_of(model)
    with torch.no_grad():
        model["b"].weight.add_(1.0)
    match = "changed between the forward pass and backward"
    refused(GraphError, match, model, lambda: backward(balancer_of(name), losses, model))


@pytest.mark.parametrize("name", ["uncertainty", "dwa"])
@pytest.mark.parametrize("before", [0, 1])
def test_a_refused_step_leaves_no_trace_in_the_rule(name: str, before: int) -> None:
    model, balancer = made(), balancer_of(name, tasks=TASKS)
    for step in range(before):
        balancer.backward(losses_of(model, step), model)
    saved = copy.deepcopy(balancer.state_dict())
    losses = losses_of(model)
    with torch.no_grad():
        model["b"].weight.add_(1.0)
    refused(GraphError, "changed", model, lambda: balancer.backward(losses, model))
    after = balancer.state_dict()
    assert (after["step"], list(after["rules"])) == (saved["step"], list(saved["rules"]))
    for group, state in saved["rules"].items():
        for key, value in state.items():
            torch.testing.assert_close(after["rules"][group][key], value, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("name", ANY_NUMBER)
def test_a_graph_that_is_used_up(name: str) -> None:
    model = made()
    losses = losses_of(model)
    for loss in losses.values():
        loss.backward(retain_graph=loss is not losses["c"])
    match = "at step 0: backward was already called"
    refused(GraphError, match, model, lambda: backward(balancer_of(name), losses, model))


def test_inputs_that_do_not_fit() -> None:
    model = made()
    losses = losses_of(model)
    balancer = polytask.balancer("mgda", tasks=TASKS)
    step = balancer.backward
    separate = {"a": model["a"].weight.sum(), "b": model["b"].weight.sum()}
    for error, match, call in [
        (BadValue, r"the loss of task 'a' is \(1,\)", lambda: step({**losses, "a": losses["a"][None]}, model)),
        (UnknownName, "no task 'bb' .did you mean 'b'", lambda: step({"bb": losses["b"]}, model)),
        (UnknownName, "counts=: no task 'b'", lambda: step(losses, model, counts={"a": 1})),
        (UnknownName, "did you mean 'trunk.weight'", lambda: step(losses, model, shared=["trunk.weigth"])),
        (Inconsistent, "rule 'equal' weighs the losses, .* leave shared= out",
         lambda: polytask.balancer("equal").backward(losses, model, shared=["trunk.weight"])),
        (MissingInput, "loss of task 'b' has no gradient", lambda: step({**losses, "b": torch.tensor(1.0)}, model)),
        (MissingInput, "no parameter is reached by two of the tasks a, b", lambda: step(separate, model)),
        (MissingInput, "needs the model", lambda: step(losses)),
        (MissingInput, "no task is present at step 0", lambda: step({}, model)),
    ]:  # fmt: skip
        refused(error, match, model, call)


def test_options_that_do_not_fit() -> None:
    for error, match, options in [
        (UnknownName, "no rule 'pcgrd' .did you mean 'pcgrad'", {"rule": "pcgrd"}),
        (BadValue, "groups is 'layers'; allowed: all | layer | tensor", {"rule": "mgda", "groups": "layers"}),
        (BadValue, "groups is 'layer'; allowed: all", {"rule": "equal", "groups": "layer"}),
        (BadValue, "scale is 'max'", {"rule": "mgda", "scale": "max"}),
        (BadValue, "scale is 'unit'", {"rule": "dwa", "scale": "unit"}),
        (UnknownName, "no engine 'exakt'", {"rule": "mgda", "engine": "exakt"}),
        (BadValue, "the priority of task 'a' is 0", {"rule": "mgda", "priority": {"a": 0}}),
        (BadValue, "temperature is -1", {"rule": "dwa", "temperature": -1}),
        (UnknownName, "did you mean 'temperature'", {"rule": "dwa", "temprature": 1.0}),
    ]:
        with pytest.raises(error, match=match):
            polytask.balancer(**options)


def test_another_balancers_state_is_refused() -> None:
    model = made()
    saved = polytask.balancer("uncertainty", tasks=TASKS)
    saved.backward(losses_of(model), model)
    with pytest.raises(CheckpointError, match="of rule 'uncertainty', this balancer's is 'dwa'"):
        polytask.balancer("dwa").load_state_dict(saved.state_dict())
    with pytest.raises(CheckpointError, match="of tasks"):
        polytask.balancer("uncertainty", tasks=["a"]).load_state_dict(saved.state_dict())
    damaged = copy.deepcopy(saved.state_dict())
    del damaged["rules"]["all"]["state.log_variance"]
    with pytest.raises(CheckpointError, match=r"state\.log_variance"):
        polytask.balancer("uncertainty").load_state_dict(damaged)


def test_reentrant_checkpointing_is_named() -> None:
    model = made()
    x = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    hidden = torch.utils.checkpoint.checkpoint(model["trunk"], x, use_reentrant=True)
    losses = {task: model[task](hidden).sum() for task in ("a", "b")}
    with pytest.raises(MissingInput, match="use_reentrant=False"):
        polytask.balancer("mgda").backward(losses, model)


def test_the_report() -> None:
    model = made()
    report = polytask.balancer("upgrad").backward(losses_of(model), model)
    assert list(report.losses) == list(report.weights) == report.tasks == TASKS
    assert dict.fromkeys(report.route.values()) == {"exact": None}
    assert report.cosines is not None
    assert report.cosines.diagonal().tolist() == pytest.approx([1.0] * 3)
    assert 0 <= report.conflict_rate <= 1


def test_losses_without_names_are_refused() -> None:
    """In a process of its own, without the tests' type checks, as a user has it."""
    code = "import polytask, torch; polytask.balancer('upgrad').backward([torch.ones(())])"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "BadValue: rule 'upgrad': losses is 'list'; allowed: a mapping {task: loss}" in ended.stderr
