"""The engines `layerwise` and `auto` against the dense Jacobian for each kind of module, and the routes they report."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.balancing.references import check_scaler, jacobian
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import polytask
from polytask.balancing import Balancer
from polytask.balancing.layer_gradients import product_gram
from polytask.balancing.report import BackwardReport
from polytask.core.errors import GraphError, NotFinite

TASKS = ["a", "b", "c"]
ROWS = 5


class Twice(nn.Module):
    """A layer that is called twice, and one whose weight serves in both directions."""

    def __init__(self) -> None:
        super().__init__()
        self.again, self.forth = nn.Linear(40, 40), nn.Linear(40, 7)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.again(self.again(x).tanh()).tanh()
        return nn.functional.linear(self.forth(hidden).tanh(), self.forth.weight.T).tanh()


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(32, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x, x, x, need_weights=False)[0].flatten(1)


class Penalised(nn.Linear):
    """A weight that is used outside its layer's product too."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.weight.square().sum()


class Last(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRU(6, 20, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.cell(x)[1][0]


def embedding(**options: Any) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(nn.Embedding(30, 4, **options), nn.Flatten())


def indices() -> Tensor:
    return torch.randint(30, (ROWS, 3), generator=torch.Generator().manual_seed(0)) // 3  # some of them several times


def numbers(*shape: int) -> Callable[[], Tensor]:
    return lambda: torch.randn(ROWS, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def image(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers, nn.Flatten())


# name -> (trunk, input, the routes of its modules under `layerwise`)
TRUNKS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor], dict[str, str]]] = {
    "linear": (lambda: nn.Linear(9, 4), numbers(9), {"trunk": "layerwise"}),
    "without bias": (lambda: nn.Linear(9, 4, bias=False), numbers(9), {"trunk": "layerwise"}),
    "three axes": (lambda: image(nn.Linear(90, 4)), numbers(2, 90), {"trunk.0": "layerwise"}),
    "many rows": (lambda: nn.Linear(3, 4), numbers(3), {"trunk": "exact: 5 rows, fan-in 3"}),
    "convolution": (
        lambda: image(nn.Conv2d(8, 3, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2)), nn.Tanh()),
        numbers(8, 3, 4),
        {"trunk.0": "layerwise"},
    ),
    "in one dimension": (lambda: image(nn.Conv1d(9, 3, 3, stride=2)), numbers(9, 7), {"trunk.0": "layerwise"}),
    "grouped": (lambda: image(nn.Conv1d(60, 2, 2, groups=2)), numbers(60, 3), {"trunk.0": "exact"}),
    "embedding": (embedding(), indices, {"trunk.0": "layerwise"}),
    "sparse embedding": (embedding(sparse=True, padding_idx=2), indices, {"trunk.0": "layerwise"}),
    "embedding by frequency": (embedding(scale_grad_by_freq=True), indices, {"trunk.0": "exact"}),
    "norms": (
        lambda: nn.Sequential(nn.LayerNorm(9), nn.BatchNorm1d(9), nn.Dropout(0.5)),
        numbers(9),
        {"trunk.0": "exact", "trunk.1": "exact"},
    ),
    "attention": (
        Attention,
        numbers(3, 32),
        {
            "trunk.inner.in_proj_weight": "layerwise",
            "trunk.inner.in_proj_bias": "exact",
            "trunk.inner.out_proj": "layerwise",
        },
    ),
    "used twice": (
        Twice,
        numbers(40),
        {"trunk.again": "layerwise", "trunk.forth": "exact"},
    ),
    "penalised": (lambda: Penalised(9, 4), numbers(9), {"trunk": "exact"}),
    "recurrent": (
        Last,
        numbers(3, 6),
        {
            "trunk.cell.weight_ih_l0": "exact: 15 rows, fan-in 6",
            "trunk.cell.weight_hh_l0": "layerwise",
            "trunk.cell.bias_ih_l0": "exact",
            "trunk.cell.bias_hh_l0": "layerwise",
        },
    ),
}  # fmt: skip


def made(trunk: nn.Module, x: Tensor, dtype: torch.dtype = torch.float64) -> nn.ModuleDict:
    trunk = trunk.to(dtype)
    with torch.no_grad():
        width = trunk(x.to(dtype) if x.is_floating_point() else x).shape[1]
    return nn.ModuleDict({"trunk": trunk, **{task: nn.Linear(width, 2) for task in TASKS}}).to(dtype)


def losses_of(model: nn.ModuleDict, x: Tensor, tasks: list[str] = TASKS) -> dict[str, Tensor]:
    dtype = model["a"].weight.dtype
    hidden = model["trunk"](x.to(dtype) if x.is_floating_point() else x).tanh()
    return {task: (model[task](hidden) - TASKS.index(task)).square().mean() for task in tasks}


def checked(model: nn.Module, losses: dict[str, Tensor], balancer: Balancer, tolerance: float) -> Any:
    """The report; G and every gradient were those of the dense Jacobian."""
    J = jacobian(losses, {name: p for name, p in model.named_parameters() if p.requires_grad})
    report = balancer.backward(losses, model)
    dense = torch.cat([J[name].flatten(1) for name in report.shared], dim=1).double()
    lengths = dense.norm(dim=1)
    assert float(((report.gram - dense @ dense.T).abs() / lengths[:, None] / lengths).max()) < tolerance
    weights = torch.tensor([report.weights[task] for task in losses], dtype=torch.float64)
    for name, stack in J.items():
        used = weights if name in report.shared else torch.ones_like(weights)
        wanted = torch.einsum("t,t...->...", used.to(stack.dtype), stack)
        grad = model.get_parameter(name).grad
        found = torch.zeros_like(wanted) if grad is None else grad.to_dense()
        torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance * float(wanted.abs().max()))
    return report


@pytest.mark.parametrize("name", list(TRUNKS))
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_every_module_is_that_of_the_dense_jacobian(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    trunk, numbers_of, routes = TRUNKS[name]
    model, x = made(trunk(), numbers_of(), dtype), numbers_of()
    size = sum(parameter.numel() for parameter in model["trunk"].parameters())
    tolerance = 1e-10 if dtype == torch.float64 else size**0.5 * torch.finfo(torch.float32).eps
    balancer = polytask.balancer("upgrad", engine="layerwise")
    for _ in range(2):  # memory is used again
        model.zero_grad()
        assert checked(model, losses_of(model, x), balancer, tolerance).route == routes
    model.zero_grad()
    checked(model, losses_of(model, x), polytask.balancer("mgda", engine="auto"), tolerance)


@pytest.mark.parametrize("tasks", [TASKS, ["c", "a"], ["b"]])
@pytest.mark.parametrize("groups", ["all", "layer", "tensor"])
def test_blocks_of_some_tasks_absent_tasks_and_groups(tasks: list[str], groups: str) -> None:
    torch.manual_seed(0)
    model = nn.ModuleDict({"trunk": nn.Linear(9, 20), "block": nn.Linear(20, 20), "tied": nn.Linear(20, 1)})
    model.update({task: nn.Linear(20, 1) for task in TASKS})
    model["b"].weight = model["a"].weight
    model["trunk"].bias.requires_grad_(False)
    model.double()

    def losses() -> dict[str, Tensor]:
        hidden = model["trunk"](numbers(9)())
        block = model["block"](hidden).tanh()
        every = {task: model[task](hidden if task == "b" else block) for task in TASKS}
        return {task: (every[task] - 1).square().mean() for task in tasks}

    grads = []
    for engine in ("exact", "layerwise", "auto"):
        model.zero_grad()
        report = polytask.balancer("upgrad", tasks=TASKS, engine=engine, groups=groups).backward(losses(), model)
        grads.append((report, [parameter.grad for parameter in model.parameters()]))
    (first, wanted), *others = grads
    for report, found in others:
        torch.testing.assert_close(report.gram, first.gram, rtol=1e-10, atol=1e-14)
        assert report.shared == first.shared
        assert list(report.weights_by_group) == list(first.weights_by_group)
        for grad, other in zip(found, wanted, strict=True):
            assert (grad is None) == (other is None)
            if grad is not None:
                torch.testing.assert_close(grad, other, rtol=1e-9, atol=1e-12)


def linear(dtype: torch.dtype = torch.float32) -> nn.ModuleDict:
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Linear(9, 40), nn.Tanh(), nn.Linear(40, 30))
    return made(trunk, numbers(9)(), dtype)


def test_tasks_on_batches_of_their_own() -> None:
    model = linear(torch.float64)
    xs = {task: torch.randn(2 + i, 9, dtype=torch.float64) for i, task in enumerate(TASKS)}
    losses = {task: losses_of(model, x, [task])[task] for task, x in xs.items()}
    report = checked(model, losses, polytask.balancer("upgrad", engine="layerwise"), 1e-10)
    assert report.route == {"trunk.0": "exact: 9 rows, fan-in 9", "trunk.2": "layerwise"}


def test_bfloat16_autocast() -> None:
    model = linear()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = model["trunk"](numbers(9)().float()).tanh()
        outputs = {task: model[task](hidden) for task in TASKS}
    losses = {task: (outputs[task].float() - i).square().mean() for i, task in enumerate(TASKS)}
    report = checked(model, losses, polytask.balancer("upgrad", engine="layerwise"), 2e-2)
    assert report.route == {"trunk.0": "layerwise", "trunk.2": "layerwise"}
    assert all(parameter.grad.dtype == torch.float32 for parameter in model.parameters())


@pytest.mark.parametrize("large", [False, True])
def test_with_a_gradient_scaler(large: bool) -> None:
    def step(model: nn.ModuleDict, scaler: torch.amp.GradScaler | None) -> BackwardReport:
        losses = {task: 9 * loss for task, loss in losses_of(model, numbers(9)()).items()}
        return polytask.balancer("upgrad", engine="layerwise").backward(losses, model, scaler=scaler)

    check_scaler(linear, step, large=large)


@pytest.mark.parametrize("engine", ["exact", "layerwise", "auto"])
def test_a_compiled_trunk(engine: str) -> None:
    """Its graph is one node, which tells nothing of the layers within."""
    model = linear()
    whole = nn.ModuleDict({**model, "trunk": torch.compile(model["trunk"], backend="aot_eager")})
    report = checked(model, losses_of(whole, numbers(9)()), polytask.balancer("upgrad", engine=engine), 1e-4)
    assert dict.fromkeys(report.route.values()) == {"exact": None}


@pytest.mark.parametrize("engine", ["layerwise", "auto"])
def test_checkpointed_activations_are_computed_once_more_a_task(engine: str) -> None:
    """To read a layer's inputs would compute its block once more for each layer."""
    model, computed = linear(torch.float64), []
    first, last = nn.Linear(300, 9).double(), model["trunk"]

    def block(x: Tensor) -> Tensor:
        computed.append(x)
        return last(x)

    model["first"] = first
    x = torch.randn(5, 300, dtype=torch.float64)
    hidden = checkpoint(block, first(x).tanh(), use_reentrant=False).tanh()
    losses = {task: (model[task](hidden) - 1).square().mean() for task in TASKS}
    balancer = polytask.balancer("upgrad", engine=engine)
    before = len(computed)
    report = balancer.backward(losses, model)
    assert len(computed) - before == len(TASKS)
    packed = "exact: activations are checkpointed" if engine == "layerwise" else "exact"
    assert report.route["trunk.2"] == packed
    assert report.route["first"] == ("layerwise" if engine == "layerwise" else "exact")


def test_a_hook_on_a_parameter_is_heard() -> None:
    model = linear(torch.float64)
    model["trunk"][0].weight.register_hook(lambda grad: 3 * grad)
    report = checked(model, losses_of(model, numbers(9)()), polytask.balancer("upgrad", engine="layerwise"), 1e-10)
    assert report.route == {"trunk.0": "exact", "trunk.2": "layerwise"}


def test_a_rule_that_reads_the_gradients_themselves() -> None:
    grads = []
    for engine in ("exact", "layerwise", "auto"):
        model = linear()
        report = polytask.balancer("trimmed_mean", engine=engine).backward(losses_of(model, numbers(9)()), model)
        assert report.route == {
            "all": "exact" if engine == "exact" else "exact: the rule reads the gradients themselves"
        }
        grads.append([parameter.grad for parameter in model.parameters()])
    for exact, *others in zip(*grads, strict=True):
        assert all(torch.equal(exact, other) for other in others)


def test_what_cannot_be_used_leaves_no_gradient() -> None:
    for error, match in [(NotFinite, "the gradient of task 'b' is not finite at step 0"), (GraphError, "was changed")]:
        model = linear()
        losses = losses_of(model, numbers(9)())
        if error is NotFinite:
            infinite = (model["trunk"][0].weight.sum() * 0).clamp(min=0).sqrt()
            losses["b"] = losses["b"] + infinite
        else:
            with torch.no_grad():
                model["trunk"][2].weight.add_(1)
        with pytest.raises(error, match=match):
            polytask.balancer("upgrad", engine="layerwise").backward(losses, model)
        assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("scale", [1.0, 1e-22, 1e18])
@pytest.mark.parametrize("cancelling", [False, True])
def test_inner_products_lose_no_digits(scale: float, cancelling: bool) -> None:
    """Squares that leave the range of float32, and rows of a batch that nearly cancel."""
    generator = torch.Generator().manual_seed(0)
    inputs, deltas = torch.randn(200, 300, generator=generator), torch.randn(3, 200, 20, generator=generator)
    if cancelling:
        inputs = 1 + 1e-3 * inputs
        deltas = deltas - deltas.mean(1, keepdim=True)
    deltas = deltas * scale
    J = torch.cat([(deltas.mT.double() @ inputs.double()).flatten(1), deltas.double().sum(1)], dim=1)
    wanted = J @ J.T
    error = (product_gram(inputs, deltas, ones=True) - wanted).abs() / wanted.diagonal().sqrt()[:, None]
    assert float((error / wanted.diagonal().sqrt()).max()) < (300 * 20) ** 0.5 * torch.finfo(torch.float32).eps
