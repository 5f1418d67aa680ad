"""MAXL against dense references of its double gradient, in float64."""

import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

import polytask
from polytask.core.errors import BadValue, MissingInput
from polytask.sharing.label_generator import LabelGenerator, collapse, focal_loss, masked_softmax

STEP = 0.3


class Networks(nn.Module):
    """A trunk with a head of two primary and one of five generated auxiliary classes, and the generator."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.trunk, self.primary, self.auxiliary = nn.Linear(3, 4), nn.Linear(4, 2), nn.Linear(4, 5)
            self.generator = LabelGenerator(nn.Linear(3, 5), groups=[3, 2])
        self.double()

    def forward(self, inputs: Tensor, classes: Tensor) -> dict[str, Tensor]:
        features = self.trunk(inputs).tanh()
        labels = self.generator(inputs, classes)
        return {
            "primary": nn.functional.cross_entropy(self.primary(features), classes),
            "auxiliary": focal_loss(self.auxiliary(features), labels),
            "spread": collapse(labels),
        }


def batch() -> tuple[Tensor, Tensor]:
    inputs = torch.randn(12, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return inputs, (inputs[:, 0] > 0).long()


def stepped(model: Networks, **options: Any) -> Any:
    def forward(parameters: Mapping[str, Tensor] | None = None, batch_: int | str = 0) -> dict[str, Tensor]:
        return functional_call(model, dict(parameters or {}), batch())

    balancer = polytask.balancer("maxl", primary=["primary"], virtual_step=STEP, **options)
    return balancer.backward(model(*batch()), model, forward=forward)


def split(model: Networks) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    named = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    return (
        {name: each for name, each in named.items() if not name.startswith("generator")},
        {name: each for name, each in named.items() if name.startswith("generator")},
    )


def flat(tensors: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors.values()])


def unflat(vector: Tensor, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    pieces = vector.split([tensor.numel() for tensor in like.values()])
    return {name: piece.view(like[name].shape) for name, piece in zip(like, pieces, strict=True)}


def test_the_double_gradient_is_the_dense_one() -> None:
    """The mixed second derivatives of the learned losses as one matrix, times the primary gradient after the step."""
    model, reference = Networks(), Networks()
    report = stepped(model, entropy_weight=0.2)
    network, generating = split(reference)
    theta, phi = flat(network), flat(generating)

    def losses(theta: Tensor, phi: Tensor) -> dict[str, Tensor]:
        return functional_call(reference, {**unflat(theta, network), **unflat(phi, generating)}, batch())

    def gradient(phi: Tensor) -> Tensor:
        def learned(theta: Tensor) -> Tensor:
            found = losses(theta, phi)
            return found["primary"] + found["auxiliary"]

        return torch.func.grad(learned)(theta)

    descent, mixed = gradient(phi), torch.func.jacrev(gradient)(phi)  # [P], [P, Q]
    ahead = theta - STEP * descent
    primary = torch.func.grad(lambda t: losses(t, phi)["primary"])(ahead)
    spread = torch.func.grad(lambda p: losses(theta, p)["spread"])(phi)
    wanted = -STEP * mixed.T @ primary + 0.2 * spread
    named = dict(model.named_parameters())
    torch.testing.assert_close(flat({name: named[name].grad for name in generating}), wanted, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(flat({name: named[name].grad for name in network}), descent, rtol=1e-9, atol=1e-12)
    assert report.weights == {"primary": 1.0, "auxiliary": 1.0, "spread": 0.2}
    after = losses(ahead, phi)
    assert report.measured["ahead"].tolist() == pytest.approx([after[task].item() for task in report.tasks])


def test_the_double_gradient_is_a_slope() -> None:
    """A generator moved a little along it lowers the primary loss after the network's step, as much as it says."""
    model = Networks()
    stepped(model, entropy_weight=0.0)
    slope = {name: p.grad for name, p in model.named_parameters() if name.startswith("generator")}

    def primary_after(moved: float) -> float:
        other = Networks()
        for name, direction in slope.items():
            other.get_parameter(name).data.add_(moved * direction)
        grads = torch.autograd.grad(sum(list(other(*batch()).values())[:2]), [*split_live(other)])
        for parameter, grad in zip(split_live(other), grads, strict=True):
            parameter.data.sub_(STEP * grad)
        return other(*batch())["primary"].item()

    found = (primary_after(1e-4) - primary_after(-1e-4)) / 2e-4
    assert found == pytest.approx(float(flat(slope).square().sum()), rel=1e-6)
    assert found > 0


def split_live(model: Networks) -> list[nn.Parameter]:
    return [parameter for name, parameter in model.named_parameters() if not name.startswith("generator")]


def test_training_lowers_the_primary_loss_and_uses_every_class() -> None:
    model = Networks()
    optimizer = torch.optim.SGD(model.parameters(), lr=STEP)
    first = {task: loss.item() for task, loss in model(*batch()).items()}
    for _ in range(30):
        optimizer.zero_grad()
        stepped(model)
        optimizer.step()
    last = {task: loss.item() for task, loss in model(*batch()).items()}
    assert last["primary"] < 0.7 * first["primary"]
    assert last["spread"] < -0.9 * math.log(5) * 0.9


def test_masked_softmax_and_losses_by_hand() -> None:
    """Row 0 is of class 0 with groups (2, 1): softmax of (0, log 3). Its focal loss at equal outputs is (2/3)^2 log 3,
    whatever the labels; the mean label over both rows is (1/8, 3/8, 1/2)."""
    labels = masked_softmax(torch.tensor([[0.0, math.log(3), 9.0], [5.0, 5.0, 0.0]]), torch.tensor([0, 1]), [2, 1])
    torch.testing.assert_close(labels, torch.tensor([[0.25, 0.75, 0.0], [0.0, 0.0, 1.0]]))
    assert focal_loss(torch.zeros(2, 3), labels).item() == pytest.approx(4 / 9 * math.log(3))
    entropy = sum(p * math.log(1 / p) for p in (1 / 8, 3 / 8, 1 / 2))
    assert collapse(labels).item() == pytest.approx(-entropy)


def test_a_class_that_no_row_has_any_more_leaves_gradients_finite() -> None:
    outputs = torch.tensor([[200.0, 0.0, 0.0], [300.0, 0.0, 1.0]], requires_grad=True)
    labels = masked_softmax(outputs, torch.tensor([0, 0]), [2, 1])
    assert labels[:, 1].tolist() == [0.0, 0.0]
    (grad,) = torch.autograd.grad(collapse(labels), outputs)
    assert grad.isfinite().all()


def test_what_does_not_fit() -> None:
    model = Networks()
    with pytest.raises(MissingInput, match="no trained parameter of the generator 'generater'; names begin with trunk"):
        stepped(model, generator="generater")
    with pytest.raises(BadValue, match="generator is ''; allowed: the beginning of parameters' names"):
        polytask.balancer("maxl", generator="")
    with pytest.raises(BadValue, match=r"groups is \[2, 0\]"):
        LabelGenerator(nn.Linear(3, 2), groups=[2, 0])
    with pytest.raises(BadValue, match=r"shape of the generator's outputs is \(12, 5\); allowed: \(rows, 4\)"):
        LabelGenerator(nn.Linear(3, 5).double(), groups=[2, 2])(*batch())
    assert all(parameter.grad is None for parameter in model.parameters())
