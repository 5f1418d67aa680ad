"""The engine `representation` against gradients at the representation taken one by one."""

import pytest
import torch
from tests.balancing.references import check_scaler, jacobian
from torch import Tensor, nn

import polytask
from polytask.balancing.report import BackwardReport
from polytask.core.errors import BadValue, Inconsistent, MissingInput, NotFinite

TASKS = ["a", "b", "c"]


class Net(nn.Module):
    """A trunk, experts that all heads read, a head each."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.trunk = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 5))
            self.expert = nn.Linear(5, 7)
            self.heads = nn.ModuleDict({task: nn.Linear(7, 1) for task in TASKS})
        self.to(dtype)

    def losses(self, z: Tensor, tasks: list[str] = TASKS) -> dict[str, Tensor]:
        hidden = self.expert(z).tanh()
        return {task: (self.heads[task](hidden) - TASKS.index(task)).square().mean() for task in tasks}


def rows(seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(9, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("name", ["upgrad", "mgda", "gradnorm", "pcgrad"])
@pytest.mark.parametrize("tasks", [TASKS, ["c", "a"], ["b"]])
def test_weights_come_from_the_representation(name: str, tasks: list[str]) -> None:
    model = Net()
    z = model.trunk(rows())
    losses = model.losses(z, tasks)
    J = jacobian(losses, {"z": z, **dict(model.named_parameters())})
    report = polytask.balancer(name, tasks=TASKS, engine="representation").backward(losses, model, representation=z)
    order = [tasks.index(task) for task in report.tasks]
    at_z = J["z"].flatten(1)[order]
    torch.testing.assert_close(report.gram, at_z @ at_z.T, rtol=1e-10, atol=1e-14)
    weights = torch.tensor([report.weights[task] for task in tasks], dtype=torch.float64)
    for parameter_name, parameter in model.named_parameters():
        used = torch.ones_like(weights) if "heads" in parameter_name and len(tasks) > 1 else weights
        wanted = torch.einsum("t,t...->...", used, J[parameter_name])
        absent = parameter_name.split(".")[1] in set(TASKS) - set(tasks)
        torch.testing.assert_close(parameter.grad, None if absent else wanted, rtol=1e-10, atol=1e-14)
    assert report.route == {"all": "representation"}
    assert report.shared[:4] == [f"trunk.{part}" for part in ("0.weight", "0.bias", "2.weight", "2.bias")]


@pytest.mark.parametrize("name", ["trimmed_mean", "and_mask"])
def test_elementwise_rules_combine_the_cotangents(name: str) -> None:
    model = Net()
    z = model.trunk(rows())
    losses = model.losses(z)
    J = jacobian(losses, {"z": z, "expert.weight": model.expert.weight})
    rule = polytask.core.state.Rule(polytask.core.rules.find(name), TASKS)
    wanted = torch.autograd.grad(z, list(model.trunk.parameters()), rule(TASKS, J["z"]), retain_graph=True)
    report = polytask.balancer(name, engine="representation").backward(losses, model, representation=z)
    for parameter, grad in zip(model.trunk.parameters(), wanted, strict=True):
        torch.testing.assert_close(parameter.grad, grad)
    torch.testing.assert_close(model.expert.weight.grad, rule(TASKS, J["expert.weight"]))
    assert report.weights == {}


@pytest.mark.parametrize("name", ["upgrad", "graddrop"])
def test_where_the_trunk_is_the_identity_it_is_exact(name: str) -> None:
    """The shared parameters are the representation itself."""
    found = {}
    for engine in ("exact", "representation"):
        z = torch.linspace(-1, 1, 12, dtype=torch.float64).view(4, 3).requires_grad_()
        losses = {"a": z.square().sum(), "b": (z * z.roll(1, 0)).sum() + z.sum(), "c": z.exp().sum()}
        if engine == "exact":
            report = polytask.balancer(name).backward(
                losses, {"representation[0]": z}
            )  # the name that noise is drawn by
        else:
            report = polytask.balancer(name, engine=engine).backward(losses, {"z": z}, representation=z)
        found[engine] = (z.grad, report.gram)
    torch.testing.assert_close(*(grad for grad, _ in found.values()), rtol=0, atol=0)
    torch.testing.assert_close(*(gram for _, gram in found.values()), rtol=0, atol=0)


def test_the_trunk_is_passed_once_and_each_head_once() -> None:
    model, passed = Net(), []

    def watched(module: nn.Module, name: str) -> None:
        module.register_full_backward_hook(lambda *_: passed.append(name))

    for name, module in {"trunk": model.trunk[0], "last": model.trunk[2], **dict(model.heads.items())}.items():
        watched(module, name)
    z = model.trunk(rows().requires_grad_())  # a module's hook runs only if its input wants a gradient
    polytask.balancer("upgrad", engine="representation").backward(model.losses(z), model, representation=z)
    assert sorted(passed) == ["a", "b", "c", "last", "trunk"]


def test_several_pieces_are_added_up() -> None:
    model = Net()
    z = [model.trunk(rows(seed)) for seed in (0, 1)]
    each = [model.losses(piece) for piece in z]
    losses = {task: each[0][task] + each[1][task] for task in TASKS}
    J = jacobian(losses, dict(enumerate(z)))
    report = polytask.balancer("mgda", engine="representation").backward(losses, model, representation=z)
    stacks = [J[i].flatten(1) for i in range(2)]
    torch.testing.assert_close(report.gram, sum(stack @ stack.T for stack in stacks))
    weights = torch.tensor(list(report.weights.values()), dtype=torch.float64)
    cotangents = [torch.einsum("t,t...->...", weights, J[i]) for i in range(2)]
    again = model.trunk(rows(0)), model.trunk(rows(1))
    wanted = torch.autograd.grad(again, model.trunk[0].weight, cotangents)[0]
    torch.testing.assert_close(model.trunk[0].weight.grad, wanted)


@pytest.mark.parametrize("large", [False, True])
def test_with_a_gradient_scaler(large: bool) -> None:
    def step(model: Net, scaler: torch.amp.GradScaler | None) -> BackwardReport:
        z = model.trunk(rows(dtype=torch.float32))
        balancer = polytask.balancer("upgrad", engine="representation")
        losses = {task: loss * 1e3 for task, loss in model.losses(z).items()}
        return balancer.backward(losses, model, representation=z, scaler=scaler)

    check_scaler(lambda: Net(torch.float32), step, large=large)


def test_what_does_not_fit() -> None:
    model = Net()
    z = model.trunk(rows())
    losses = model.losses(z)
    weight = model.trunk[0].weight
    exact, engine = polytask.balancer("upgrad"), polytask.balancer("upgrad", engine="representation")
    around = {**losses, "b": losses["b"] + weight.sum()}
    steep = model.trunk(rows()) + (weight.sum() * 0.0).clamp(min=0).sqrt()
    for error, match, call in [
        (MissingInput, "needs backward.losses, model, representation=", lambda: engine.backward(losses, model)),
        (Inconsistent, "is read by engine 'representation'", lambda: exact.backward(losses, model, representation=z)),
        (MissingInput, "of task 'a' does not depend", lambda: engine.backward(losses, model, representation=z * 1)),
        (MissingInput, "no parameter that is trained", lambda: engine.backward(losses, model, representation=rows())),
        (
            Inconsistent,
            "'trunk.0.weight' is reached .* around",
            lambda: engine.backward(around, model, representation=z),
        ),
        (Inconsistent, "depends on another part", lambda: engine.backward(losses, model, representation=[z, z * 1])),
        (Inconsistent, "given twice", lambda: engine.backward(losses, model, representation=[z, z])),
        (Inconsistent, "shared=", lambda: engine.backward(losses, model, representation=z, shared=["expert.bias"])),
        (
            NotFinite,
            "'trunk.0.weight' is not",
            lambda: engine.backward(model.losses(steep), model, representation=steep),
        ),
    ]:
        with pytest.raises(error, match=match):
            call()
        assert all(parameter.grad is None for parameter in model.parameters())
    for match, options in [
        ("engine is 'representation'; allowed: exact", {"rule": "equal"}),
        ("groups is 'layer'; allowed: all", {"rule": "mgda", "groups": "layer"}),
        ("scale is 'unit'; allowed: published", {"rule": "mgda", "scale": "unit"}),
    ]:
        with pytest.raises(BadValue, match=match):
            polytask.balancer(**options, engine="representation")
