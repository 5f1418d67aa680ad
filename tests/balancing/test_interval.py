"""The engine `interval`: weights are kept for some steps, and what they weigh is what the exact engine would write."""

import copy
import io

import pytest
import torch
from tests.balancing.references import check_scaler
from torch import Tensor, nn

import polytask
from polytask.balancing.report import BackwardReport
from polytask.core.errors import BadValue, CheckpointError, NotFinite, UnknownName

TASKS = ["a", "b", "c"]
EVERY = {"kind": "interval", "every": 3}


def made(dtype: torch.dtype = torch.float64) -> nn.ModuleDict:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        parts = {"trunk": nn.Linear(5, 7), "block": nn.Linear(7, 7), **{task: nn.Linear(7, 1) for task in TASKS}}
        return nn.ModuleDict(parts).to(dtype)


def losses_of(model: nn.ModuleDict, step: int = 0, tasks: list[str] = TASKS) -> dict[str, Tensor]:
    """Tasks a and b read one block more than c."""
    dtype = model["trunk"].weight.dtype
    x = torch.randn(9, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(step)).to(dtype)
    hidden = model["trunk"](x).tanh()
    special = model["block"](hidden).tanh()
    return {
        task: (model[task](hidden if task == "c" else special) - TASKS.index(task)).square().mean() for task in tasks
    }


def expected(weights: dict[str, float], step: int) -> dict[str, Tensor | None]:
    """Name -> the weighted sum over tasks where shared, the task's own gradient where private."""
    model = made()
    found: dict[str, Tensor | None] = {}
    losses = losses_of(model, step, list(weights))
    for name, parameter in model.named_parameters():
        rows = {
            t: torch.autograd.grad(x, parameter, retain_graph=True, allow_unused=True)[0] for t, x in losses.items()
        }
        terms = [
            row * (1.0 if name[0] in TASKS and name[1] == "." else weights[t])
            for t, row in rows.items()
            if row is not None
        ]
        found[name] = sum(terms[1:], start=terms[0]) if terms else None
    return found


@pytest.mark.parametrize("name", ["upgrad", "mgda", "gradnorm", "random", "cagrad"])
def test_kept_weights_write_what_the_exact_engine_would(name: str) -> None:
    model, balancer = made(), polytask.balancer(name, engine=EVERY)
    kept = []
    for step in range(7):
        model.zero_grad()
        report = balancer.backward(losses_of(model, step), model)
        kept.append(list(report.weights.values()))
        fresh = step % 3 == 0
        kept_route = {"all": f"kept from step {step - step % 3}"}
        assert report.route == ({"trunk": "exact", "block": "exact"} if fresh else kept_route)
        assert (report.gram is None) == (not fresh)
        assert kept[step] == kept[step - step % 3]
        for parameter_name, wanted in expected(report.weights, step).items():
            torch.testing.assert_close(model.get_parameter(parameter_name).grad, wanted, rtol=1e-10, atol=1e-14)
    assert kept[0] != kept[3]


@pytest.mark.parametrize("weight", [0.0, 1e-9, -0.5, 2.0, 1e7])
def test_a_private_parameter_does_not_feel_the_weight(weight: float) -> None:
    """Not even that of a task whose gradient the weight has wiped out."""
    model, balancer = made(), polytask.balancer("mgda", engine=EVERY)
    balancer.backward(losses_of(model), model)
    weights = torch.tensor([weight, 1.0, 0.5], dtype=torch.float64)
    state = balancer.state_dict()
    state["engine"]["kept"][0]["weights"] = weights
    balancer.load_state_dict(state)
    model.zero_grad()
    balancer.backward(losses_of(model, 1), model)
    for name, wanted in expected(dict(zip(TASKS, weights.tolist(), strict=True)), 1).items():
        torch.testing.assert_close(model.get_parameter(name).grad, wanted, rtol=1e-9, atol=1e-14)


def test_each_set_of_present_tasks_has_its_own_weights() -> None:
    model, balancer = made(), polytask.balancer("upgrad", tasks=TASKS, engine=EVERY)
    routes = []
    for step, tasks in enumerate([TASKS, ["a", "c"], TASKS, ["a", "c"], ["c", "a"], TASKS, ["b"]]):
        routes.append(balancer.backward(losses_of(model, step, tasks), model).route.get("all", "fresh"))
    assert routes == [
        "fresh", "fresh", "kept from step 0", "kept from step 1", "fresh", "fresh", "fresh",
    ]  # fmt: skip


def test_one_backward_pass_where_weights_are_kept() -> None:
    model, passed = made(), []

    def watch(module: nn.Module, inputs: object, output: Tensor) -> None:
        output.register_hook(lambda _: passed.append(module))

    for module in model.values():
        module.register_forward_hook(watch)
    balancer = polytask.balancer("upgrad", engine=EVERY)
    balancer.backward(losses_of(model), model)
    assert len(passed) == 3 + 2 + 3  # each head; the block for two tasks; the trunk for three
    passed.clear()
    balancer.backward(losses_of(model, 1), model)
    assert len(passed) == len(set(passed)) == 5


@pytest.mark.parametrize("stop", [1, 2, 4])
def test_resumed_in_between(stop: int) -> None:
    def run(stop: int | None) -> list[Tensor]:
        model, balancer = made(), polytask.balancer("random", tasks=TASKS, engine=EVERY)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        for step in range(8):
            if step == stop:
                file = io.BytesIO()
                torch.save(balancer.state_dict(), file)
                balancer = polytask.balancer("random", tasks=TASKS, engine=EVERY)
                file.seek(0)
                balancer.load_state_dict(torch.load(file, weights_only=True))
            optimizer.zero_grad()
            balancer.backward(losses_of(model, step, TASKS if step % 4 else ["a", "b"]), model)
            optimizer.step()
        return list(model.parameters())

    assert all(torch.equal(x, y) for x, y in zip(run(None), run(stop), strict=True))


def test_with_a_gradient_scaler() -> None:
    def step(model: nn.Module, scaler: torch.amp.GradScaler | None) -> BackwardReport:
        balancer = polytask.balancer("upgrad", engine=EVERY)
        balancer.backward(losses_of(model), model, scaler=scaler)
        model.zero_grad()
        return balancer.backward(losses_of(model, 1), model, scaler=scaler)

    check_scaler(lambda: made(torch.float32), step)


def test_an_overflow_keeps_no_weights() -> None:
    model, balancer = made(torch.float32), polytask.balancer("upgrad", engine=EVERY)
    scaler = torch.amp.GradScaler("cpu", init_scale=1e38)
    losses = {task: loss * 1e3 for task, loss in losses_of(model).items()}
    assert balancer.backward(losses, model, scaler=scaler).skipped
    assert balancer.state_dict()["engine"]["kept"] == []
    model.zero_grad()
    balancer = polytask.balancer("upgrad", engine=EVERY)
    balancer.backward(losses_of(model), model)
    losses = {task: loss * 1e3 for task, loss in losses_of(model).items()}
    report = balancer.backward(losses, model, scaler=scaler)
    assert report.skipped
    assert report.weights == {}


def test_a_gradient_that_is_not_finite() -> None:
    model, balancer = made(), polytask.balancer("upgrad", engine=EVERY)
    balancer.backward(losses_of(model), model)
    model.zero_grad()
    losses = losses_of(model)
    losses["b"] = losses["b"] + (model["trunk"].weight.sum() * 0.0).clamp(min=0).sqrt()
    before = copy.deepcopy(balancer.state_dict())
    with pytest.raises(NotFinite, match=r"the gradient of 'trunk\.weight' is not finite at step 1"):
        balancer.backward(losses, model)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert balancer.step == before["step"]
    assert balancer.backward(losses_of(model), model).route == {"all": "kept from step 0"}


def test_options_that_do_not_fit() -> None:
    for error, match, options in [
        (BadValue, "engine is 'interval'; allowed: exact: the rule weighs losses", {"rule": "equal"}),
        (BadValue, "rule .graddrop. has no weights to keep", {"rule": "graddrop"}),
        (BadValue, "groups is 'tensor'; allowed: all", {"rule": "mgda", "groups": "tensor"}),
        (BadValue, "scale is 'unit'", {"rule": "mgda", "scale": "unit"}),
        (BadValue, "every is 0; allowed: a number in", {"rule": "mgda", "engine": {"kind": "interval", "every": 0}}),
        (BadValue, "every is 1.5; allowed: a value of type int", {"rule": "mgda", "engine": {**EVERY, "every": 1.5}}),
        (UnknownName, "did you mean 'every'", {"rule": "mgda", "engine": {"kind": "interval", "evry": 3}}),
        (UnknownName, "no parameter 'every'", {"rule": "mgda", "engine": {"kind": "exact", "every": 3}}),
    ]:
        with pytest.raises(error, match=match):
            polytask.balancer(**{"engine": "interval", **options})
    saved = polytask.balancer("mgda", engine="interval").state_dict()
    with pytest.raises(CheckpointError, match="of engine 'interval', this balancer's is 'auto'"):
        polytask.balancer("mgda").load_state_dict(saved)
