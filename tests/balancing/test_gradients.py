"""What a balanced backward pass writes into .grad, against gradients taken one by one."""

from collections.abc import Callable, Mapping

import pytest
import torch
from tests.balancing.references import check_scaler, jacobian
from torch import Tensor, nn

import polytask
from polytask.balancing.report import BackwardReport

TASKS = ["a", "b", "c"]


class Net(nn.Module):
    """A trunk for all, a block for two of three tasks, a head each."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(6, 8), nn.Tanh())
        self.block = nn.Linear(8, 8)
        self.heads = nn.ModuleDict({task: nn.Linear(8, 1) for task in TASKS})
        self.to(dtype)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        hidden = self.trunk(x)
        special = self.block(hidden).tanh()
        return {task: self.heads[task](hidden if task == "c" else special).squeeze(1) for task in TASKS}


def batch(dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(12, 6, generator=generator, dtype=torch.float64)
    return x.to(dtype), {task: torch.randn(12, generator=generator, dtype=torch.float64).to(dtype) for task in TASKS}


def made(dtype: torch.dtype = torch.float64) -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return Net(dtype)


def losses_of(model: nn.Module, seed: int = 0) -> dict[str, Tensor]:
    x, y = batch(next(model.parameters()).dtype, seed)
    return {task: (output - y[task]).square().mean() for task, output in model(x).items()}


def dense_gram(stacks: Mapping[str, Tensor]) -> Tensor:
    J = torch.cat([stack.flatten(1) for stack in stacks.values()], dim=1).double()
    return J @ J.T


def is_shared(name: str) -> bool:
    return name.startswith(("trunk", "block"))


@pytest.mark.parametrize("name", ["equal", "uncertainty", "dwa", "pcgrad", "mgda", "upgrad"])
def test_gradients_are_the_weighted_sums(name: str) -> None:
    model = made()
    losses = losses_of(model)
    J = jacobian(losses, dict(model.named_parameters()))
    report = polytask.balancer(name).backward(losses, model)
    weights = torch.tensor(list(report.weights.values()), dtype=torch.float64)
    weighs_losses = report.gram is None
    for parameter_name, parameter in model.named_parameters():
        used = weights if weighs_losses or is_shared(parameter_name) else torch.ones_like(weights)
        wanted = torch.einsum("t,t...->...", used, J[parameter_name])
        torch.testing.assert_close(parameter.grad, wanted, rtol=1e-10, atol=1e-12)
    if not weighs_losses:
        assert report.shared == [n for n in J if is_shared(n)]
        torch.testing.assert_close(report.gram, dense_gram({n: J[n] for n in report.shared}), rtol=1e-10, atol=0)


def test_gram_in_single_precision() -> None:
    model = made(torch.float32)
    losses = losses_of(model)
    J = jacobian(losses, {n: p for n, p in model.named_parameters() if is_shared(n)})
    report = polytask.balancer("mgda").backward(losses, model)
    exact, lengths = dense_gram(J), dense_gram(J).diagonal().sqrt()
    size = sum(stack[0].numel() for stack in J.values())
    error = ((report.gram - exact).abs() / lengths[:, None] / lengths).max()
    assert error < size**0.5 * torch.finfo(torch.float32).eps


@pytest.mark.parametrize("scale", [1e-22, 1e-18, 1e15, 1e18])
def test_gram_of_extreme_single_precision_gradients(scale: float) -> None:
    """Squares below 1e-38 and above 1e38 do not fit float32; the Gram matrix does not notice."""
    parameter = torch.zeros(3, requires_grad=True)
    rows = torch.tensor([[1.0, 2.0, -1.0], [0.5, -1.0, 3.0]]) * scale
    losses = {"a": (parameter * rows[0]).sum(), "b": (parameter * rows[1]).sum()}
    report = polytask.balancer("mgda").backward(losses, [parameter])
    exact = rows.double() @ rows.double().T
    torch.testing.assert_close(report.gram, exact, rtol=1e-6, atol=0)


@pytest.mark.parametrize("groups, key", [("layer", lambda n: n.rpartition(".")[0]), ("tensor", lambda n: n)])
def test_groups_are_slices_by_hand(groups: str, key: Callable[[str], str]) -> None:
    model = made()
    losses = losses_of(model)
    J = jacobian(losses, {n: p for n, p in model.named_parameters() if is_shared(n)})
    report = polytask.balancer("mgda", groups=groups).backward(losses, model)
    for name, stack in J.items():
        members = {n: J[n] for n in J if key(n) == key(name)}
        weights = report.weights_by_group[key(name)]
        wanted = polytask.core.geometry.min_norm_point(dense_gram(members))
        torch.testing.assert_close(weights, wanted, rtol=0, atol=1e-9)
        torch.testing.assert_close(model.get_parameter(name).grad, torch.einsum("t,t...->...", weights, stack))


def test_nothing_moves_where_nothing_reaches() -> None:
    model = made()
    for parameter in model.trunk.parameters():
        parameter.requires_grad_(False)
    losses = losses_of(model)
    report = polytask.balancer("upgrad").backward({task: losses[task] for task in ("a", "b")}, model)
    assert report.shared == ["block.weight", "block.bias"]
    assert all(parameter.grad is None for parameter in model.trunk.parameters())
    assert model.heads["c"].weight.grad is None


def test_tied_weights_count_once() -> None:
    class Tied(Net):
        def __init__(self) -> None:
            super().__init__()
            self.heads["b"].weight = self.heads["a"].weight

    model = Tied()
    losses = losses_of(model)
    J = jacobian(losses, dict(model.named_parameters()))
    report = polytask.balancer("mgda").backward(losses, model)
    assert "heads.a.weight" in report.shared
    torch.testing.assert_close(report.gram, dense_gram({n: J[n] for n in report.shared}), rtol=1e-10, atol=0)


def test_batch_normalisation_and_dropout_see_one_forward_pass() -> None:
    torch.manual_seed(2)
    trunk = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5))
    model = nn.ModuleDict({"trunk": trunk, "a": nn.Linear(8, 1), "b": nn.Linear(8, 1)}).double()
    hidden = model["trunk"](batch()[0])
    losses = {"a": model["a"](hidden).square().mean(), "b": (model["b"](hidden) - 1).square().mean()}
    J = jacobian(losses, dict(model["trunk"].named_parameters()))
    report = polytask.balancer("upgrad").backward(losses, model)
    weights = torch.tensor(list(report.weights.values()), dtype=torch.float64)
    torch.testing.assert_close(report.gram, dense_gram(J), rtol=1e-10, atol=0)
    for name, parameter in model["trunk"].named_parameters():
        torch.testing.assert_close(parameter.grad, torch.einsum("t,t...->...", weights, J[name]))
    assert int(model["trunk"][1].num_batches_tracked) == 1


@pytest.mark.parametrize("name", ["equal", "upgrad"])
def test_sparse_embeddings(name: str) -> None:
    torch.manual_seed(3)
    model = nn.ModuleDict({"e": nn.Embedding(10, 4, sparse=True), "p": nn.Embedding(5, 4, sparse=True)})
    model.update({"a": nn.Linear(4, 1), "b": nn.Linear(4, 1)})
    optimizer = torch.optim.SparseAdam([model["e"].weight, model["p"].weight])
    balancer = polytask.balancer(name)
    for _ in range(2):
        first, second = model["e"](torch.tensor([1, 2, 2])), model["e"](torch.tensor([2, 7, 7]))
        private = model["p"](torch.tensor([0, 4, 4]))
        losses = {"a": (model["a"](first + private) - 1).square().mean(), "b": model["b"](second).square().mean()}
        named = {"e.weight": model["e"].weight}
        J = jacobian(losses, named)
        optimizer.zero_grad()
        report = balancer.backward(losses, model)
        grad = model["e"].weight.grad
        assert grad.is_sparse
        assert model["p"].weight.grad.is_sparse
        assert sorted(grad.coalesce().indices()[0].tolist()) == [1, 2, 7]
        weights = torch.tensor(list(report.weights.values()), dtype=torch.float32)
        torch.testing.assert_close(grad.to_dense(), torch.einsum("t,t...->...", weights, J["e.weight"]))
        optimizer.step()


@pytest.mark.parametrize("name", ["equal", "upgrad"])
def test_gradients_accumulate_over_calls(name: str) -> None:
    parts = []
    for seed in (0, 1):
        model = made()
        polytask.balancer(name).backward(losses_of(model, seed), model)
        parts.append([parameter.grad for parameter in model.parameters()])
    model, balancer = made(), polytask.balancer(name)
    for seed in (0, 1):
        balancer.backward(losses_of(model, seed), model)
    for parameter, first, second in zip(model.parameters(), *parts, strict=True):
        torch.testing.assert_close(parameter.grad, first + second, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("name", ["equal", "mgda"])
def test_gradients_may_be_changed_in_place(name: str) -> None:
    """Autograd hands out expanded tensors, and one tensor for two parameters; .grad must be the parameter's own."""
    x, y = torch.ones(3, requires_grad=True), torch.ones(3, requires_grad=True)
    z = torch.ones(3, requires_grad=True)
    polytask.balancer(name).backward({"a": (x + y + z).sum(), "b": 2 * z.sum()}, [x, y, z])
    x.grad.mul_(10)
    assert (x.grad.tolist(), y.grad.tolist()) == ([10.0] * 3, [1.0] * 3)


def test_parameters_outside_the_model_are_taken_in() -> None:
    model, outside = made(), torch.ones((), dtype=torch.float64, requires_grad=True)
    losses = {task: loss * outside for task, loss in losses_of(model).items()}
    report = polytask.balancer("upgrad").backward(losses, model)
    assert "leaf.0" in report.shared
    assert outside.grad is not None


def test_shared_parameters_can_be_named() -> None:
    model = made()
    report = polytask.balancer("mgda").backward(losses_of(model), model, shared=["trunk.0.weight"])
    assert report.shared == ["trunk.0.weight"]
    losses = losses_of(made())
    assert len(losses) == 3


def test_the_order_of_the_losses_does_not_matter() -> None:
    grads = []
    for order in (TASKS, TASKS[::-1]):
        model = made()
        losses = losses_of(model)
        polytask.balancer("pcgrad", tasks=TASKS).backward({task: losses[task] for task in order}, model)
        grads.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


@pytest.mark.parametrize("name", ["equal", "mgda"])
def test_bfloat16_autocast(name: str) -> None:
    model = made(torch.float32)
    x, y = batch(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = model(x)
    losses = {task: (output.float() - y[task]).square().mean() for task, output in outputs.items()}
    J = jacobian(losses, dict(model.named_parameters()))
    report = polytask.balancer(name).backward(losses, model)
    weights = torch.tensor(list(report.weights.values()))
    wanted = torch.einsum("t,t...->...", weights.float(), J["trunk.0.weight"])
    torch.testing.assert_close(model.trunk[0].weight.grad, wanted, rtol=2e-2, atol=5e-3)


@pytest.mark.parametrize("name", ["equal", "pcgrad", "mgda", "upgrad"])
def test_a_gradient_scaler_changes_nothing_but_the_scale(name: str) -> None:
    def step(model: Net, scaler: torch.amp.GradScaler | None) -> BackwardReport:
        return polytask.balancer(name).backward(losses_of(model), model, scaler=scaler)

    check_scaler(lambda: made(torch.float32), step)


@pytest.mark.parametrize("name", ["equal", "upgrad"])
def test_an_overflow_is_left_to_the_scaler(name: str) -> None:
    model = made(torch.float32)
    before = [parameter.clone() for parameter in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=1e38)
    losses = {task: loss * 1e3 for task, loss in losses_of(model).items()}
    report = polytask.balancer(name).backward(losses, model, scaler=scaler)
    scaler.step(optimizer)
    scaler.update()
    assert report.skipped
    assert scaler.get_scale() < 1e38
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
