"""Composed weights: the same as weights put together by hand, differentiable, and not kept by autograd."""

import gc

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from merging.learned_problem import drawn
from polytask.merging.coefficients import columns
from polytask.merging.composing import Composed, Scaled, substituted, tensors_of
from polytask.merging.vectors import Vectors

TASKS = ["a", "b"]


def vectors_of(module: nn.Module, *, float64: bool = False) -> Vectors:
    """The module as the base, and two models around it."""
    dtype = torch.float64 if float64 else torch.float32
    once = {**dict(module.named_parameters()), **dict(module.named_buffers())}  # a tied tensor under its first name
    base = {n: v.detach().clone().to(dtype) for n, v in once.items() if v.is_floating_point()}
    models = {
        task: {name: value + 0.3 * drawn(f"{task}/{name}", value.shape).to(dtype).abs() for name, value in base.items()}
        for task in TASKS
    }
    return Vectors(models, base)


def composed(vectors: Vectors, coefficients: Tensor, module: nn.Module, each: str = "tensor") -> Composed:
    composition = Scaled(vectors, coefficients, columns(vectors, each))
    like = tensors_of(module)
    return Composed(composition, {name: like[name] for name in vectors.names})


def by_hand(vectors: Vectors, coefficients: Tensor, each: str = "tensor") -> dict[str, Tensor]:
    """Independent of Composed: every weight at once."""
    groups = columns(vectors, each)
    return {
        name: vectors.base(name)
        + sum(coefficients[i, groups[name]] * vectors.row(t, name) for i, t in enumerate(TASKS))
        for name in vectors.names
    }


class Attends(nn.Module):
    """Weights that are looked at past their module's own forward: attention's output layer, a tied matrix, a GRU."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.recurrent = nn.GRU(4, 4, batch_first=True)
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.embed(tokens)
        hidden = hidden + self.attention(hidden, hidden, hidden, need_weights=False)[0]
        return self.head(self.norm(self.recurrent(hidden)[0]))


class Sees(nn.Module):
    """A convolution and BatchNorm, whose statistics are merged too."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3)
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)).tanh().flatten(1)


def inputs_of(module: nn.Module, dtype: torch.dtype) -> Tensor:
    if isinstance(module, Attends):
        return torch.tensor([[0, 1, 2, 3], [4, 5, 6, 0]])
    return drawn("image", (2, 2, 5, 5)).to(dtype)


@pytest.fixture(params=[Attends, Sees])
def module(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    return request.param().eval()


@pytest.mark.parametrize("each", ["task", "layer", "tensor"])
def test_outputs_and_gradients_are_those_of_weights_put_together_by_hand(module: nn.Module, each: str) -> None:
    module = module.double()
    vectors = vectors_of(module, float64=True)
    rows = inputs_of(module, torch.float64)
    shape = (2, max(columns(vectors, each).values()) + 1)
    ours, theirs = (drawn("coefficients", shape).double().mul(0.3).requires_grad_() for _ in range(2))
    with substituted(module, composed(vectors, ours, module, each)):
        outputs = module(rows)
    weights = by_hand(vectors, theirs, each)
    parameters = dict(module.named_parameters())
    weights = {name: value if name in parameters else value.detach() for name, value in weights.items()}
    if isinstance(module, Attends):  # functional_call leaves an RNN its own list of weights: put in by hand
        module.recurrent._flat_weights = [weights[f"recurrent.{key}"] for key in module.recurrent._flat_weights_names]
    expected = functional_call(module, weights, (rows,), tie_weights=True)
    torch.testing.assert_close(outputs, expected, rtol=1e-12, atol=1e-12)
    outputs.square().sum().backward()
    expected.square().sum().backward()
    assert ours.grad is not None
    assert theirs.grad is not None
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-10, atol=1e-12)


def test_gradients_are_the_slopes_in_float64(module: nn.Module) -> None:
    module = module.double()
    vectors = vectors_of(module, float64=True)
    rows = inputs_of(module, torch.float64)

    def outputs(coefficients: Tensor) -> Tensor:
        with substituted(module, composed(vectors, coefficients, module)):
            return module(rows).sum()

    start = drawn("coefficients", (2, len(vectors.names))).double().mul(0.3).requires_grad_()
    numbers = [name for name in vectors.names if "running" in name]
    if numbers:  # statistics get no gradient, so no slope is asked for
        columns_ = [columns(vectors, "tensor")[name] for name in numbers]
        kept = torch.tensor([number not in columns_ for number in range(start.shape[1])])
        part = start.detach()[:, kept].requires_grad_()

        def of_part(own: Tensor) -> Tensor:
            return outputs(start.detach().masked_scatter(kept.expand_as(start), own))

        assert torch.autograd.gradcheck(of_part, (part,))
    else:
        assert torch.autograd.gradcheck(outputs, (start,))


def test_the_module_is_left_as_it_was(module: nn.Module) -> None:
    before = {name: (id(value), value.detach().clone()) for name, value in tensors_of(module).items()}
    tables = [(id(part.__dict__["_parameters"]), id(part.__dict__["_buffers"])) for part in module.modules()]
    vectors = vectors_of(module)
    weights = composed(vectors, torch.ones(2, len(vectors.names), requires_grad=True), module)
    rows = inputs_of(module, torch.float32)

    def breaks_off() -> None:
        with substituted(module, weights):
            module(rows).sum().backward()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        breaks_off()
    assert {name: id(value) for name, value in tensors_of(module).items()} == {n: i for n, (i, _) in before.items()}
    assert tables == [(id(part.__dict__["_parameters"]), id(part.__dict__["_buffers"])) for part in module.modules()]
    assert all(torch.equal(value, before[name][1]) for name, value in tensors_of(module).items())
    assert all(value.grad is None for value in module.parameters())


def test_autograd_keeps_no_composed_weight() -> None:
    """Of eight layers of 64 x 64 nothing but activations is kept; plain autograd keeps every weight."""
    width, rows = 64, 4
    torch.manual_seed(0)
    module = nn.Sequential(*(part for _ in range(8) for part in (nn.Linear(width, width, bias=False), nn.Tanh())))
    vectors = vectors_of(module)
    coefficients = torch.full((2, len(vectors.names)), 0.3, requires_grad=True)
    weights = composed(vectors, coefficients, module)
    before = matrices(width)
    with substituted(module, weights):
        outputs = module(torch.ones(rows, width))
    assert matrices(width) == before  # every composed weight has gone
    one = rows * width * 4
    assert weights.saved_bytes <= 2 * 8 * one + 8 * 2 * coefficients.numel() * 4
    outputs.sum().backward()
    assert matrices(width) == before
    assert coefficients.grad is not None
    plain = 0

    def count(tensor: Tensor) -> Tensor:
        nonlocal plain
        plain += tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        functional_call(module, by_hand(vectors, coefficients), (torch.ones(rows, width),))
    of_weights = 8 * width * width * 4
    assert weights.saved_bytes < of_weights / 7
    assert plain - weights.saved_bytes > 0.9 * of_weights


def matrices(width: int) -> int:
    """How many tensors [width, width] Python knows of."""
    gc.collect()
    return sum(issubclass(type(each), Tensor) and each.shape == (width, width) for each in gc.get_objects())


def test_a_weight_comes_in_the_type_of_the_modules_own() -> None:
    module = nn.Linear(3, 2).bfloat16()
    vectors = vectors_of(module)
    leaf = torch.full((2, 1), 0.5, requires_grad=True)
    with substituted(module, composed(vectors, leaf, module, "task")):
        outputs = module(torch.ones(1, 3, dtype=torch.bfloat16))
    assert outputs.dtype == torch.bfloat16
    outputs.sum().backward()
    expected = sum(float(vectors.row(task, name).sum()) for name in vectors.names for task in TASKS[:1])
    assert leaf.grad is not None
    assert float(leaf.grad[0, 0]) == pytest.approx(expected, rel=0.02)
