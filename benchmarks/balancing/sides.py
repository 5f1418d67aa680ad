"""Who takes a step, and how: plain PyTorch, polytask's engines, torchjd, LibMTL."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import polytask
from benchmarks.balancing.libmtl import mixed_in
from benchmarks.balancing.models import Problem

Backward = Callable[[dict[str, Tensor], Tensor], Any]
Side = Callable[[Problem, nn.ModuleDict], Backward]


@dataclass
class Stepper:
    """One side with its own model; calling it takes a step."""

    problem: Problem
    side: Side

    def __post_init__(self) -> None:
        self.model = self.problem.model()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01)
        self.backward = self.side(self.problem, self.model)
        self.report: Any = None

    def __call__(self) -> None:
        losses, features = self.problem.losses(self.model)
        self.report = self.backward(losses, features)
        self.optimizer.step()
        self.optimizer.zero_grad()


def equal_weights(problem: Problem, model: nn.ModuleDict) -> Backward:
    """One backward pass of the plain sum: the unit of every ratio."""
    return lambda losses, _: torch.stack(list(losses.values())).sum().backward()


def bare_loop(problem: Problem, model: nn.ModuleDict) -> Backward:
    """T backward passes into one preallocated [T, P], J J^T and w J: what balancing costs without any library."""
    shared = list(model["trunk"].parameters())
    sizes = [parameter.numel() for parameter in shared]
    jacobian, weights = torch.empty(problem.tasks, sum(sizes)), torch.ones(problem.tasks)

    def backward(losses: dict[str, Tensor], _: Tensor) -> None:
        for row, (loss, head) in enumerate(zip(losses.values(), model["heads"], strict=True)):
            own = list(head.parameters())
            grads = torch.autograd.grad(loss, shared + own, retain_graph=row + 1 < problem.tasks)
            torch.cat([grad.flatten() for grad in grads[: len(shared)]], out=jacobian[row])
            for parameter, grad in zip(own, grads[len(shared) :], strict=True):
                parameter.grad = grad
        jacobian @ jacobian.T
        for parameter, part in zip(shared, (weights @ jacobian).split(sizes), strict=True):
            parameter.grad = part.view_as(parameter)

    return backward


def representation_floor(problem: Problem, model: nn.ModuleDict) -> Backward:
    """Each head's gradient at what all read, their inner products, one backward pass of the trunk."""
    shared = list(model["trunk"].parameters())

    def backward(losses: dict[str, Tensor], features: Tensor) -> None:
        rows = []
        for loss, head in zip(losses.values(), model["heads"], strict=True):
            own = list(head.parameters())
            row, *grads = torch.autograd.grad(loss, [features, *own], retain_graph=True)
            rows.append(row)
            for parameter, grad in zip(own, grads, strict=True):
                parameter.grad = grad
        stack = torch.stack(rows).flatten(1)
        stack @ stack.T
        torch.autograd.backward(features, stack.sum(0).view_as(features), inputs=shared)

    return backward


def engine(choice: str | Mapping[str, Any]) -> Side:
    """polytask's UPGrad."""

    def side(problem: Problem, model: nn.ModuleDict) -> Backward:
        balancer = polytask.balancer("upgrad", engine=choice)
        if balancer.engine_name == "representation":
            return lambda losses, features: balancer.backward(losses, model, representation=features)
        return lambda losses, _: balancer.backward(losses, model)

    return side


def subset(problem: Problem, model: nn.ModuleDict) -> Backward:
    """A quarter of the rows; BatchNorm counts it twice here, which costs the same."""
    balancer = polytask.balancer("upgrad", engine="subset")

    def quarter() -> Tensor:
        inputs = problem.inputs()
        return inputs[: len(inputs) // 4]

    small = Problem(problem.title, problem.tasks, problem.trunk, problem.width, quarter)
    return lambda losses, _: balancer.backward(losses, model, subset=small.losses(model)[0])


def loss_rule(name: str, **parameters: Any) -> Side:
    """polytask's rule on losses; FAMO as published looks at the losses again after the step, which is timed apart."""

    def side(problem: Problem, model: nn.ModuleDict) -> Backward:
        balancer = polytask.balancer(name, **parameters)

        def backward(losses: dict[str, Tensor], _: Tensor) -> None:
            balancer.backward(losses, model)
            if balancer.looks_again:
                with torch.no_grad():
                    balancer.after_step(problem.losses(model)[0])

        return backward

    return side


def two_forwards(problem: Problem, model: nn.ModuleDict) -> Backward:
    """Equal weights and the forward pass that FAMO needs besides."""

    def backward(losses: dict[str, Tensor], _: Tensor) -> None:
        torch.stack(list(losses.values())).sum().backward()
        with torch.no_grad():
            problem.losses(model)

    return backward


def torchjd(chunk: int | None, *, gramian: bool = False) -> Side:
    """torchjd's UPGrad: `chunk` rows at once (None: all, by vmap, its default; 1: one after the other)."""

    def side(problem: Problem, model: nn.ModuleDict) -> Backward:
        from torchjd.aggregation import UPGrad  # ty: ignore[unresolved-import]
        from torchjd.autojac import jac_to_grad, mtl_backward  # ty: ignore[unresolved-import]

        aggregator, shared = UPGrad(), list(model["trunk"].parameters())

        def backward(losses: dict[str, Tensor], features: Tensor) -> None:
            mtl_backward(list(losses.values()), features=features, parallel_chunk_size=chunk)
            jac_to_grad(shared, aggregator, optimize_gramian_computation=gramian)

        return backward

    return side


def libmtl(name: str, **arguments: Any) -> Side:
    """A weighting of LibMTL, whose wheel has no UPGrad."""

    def side(problem: Problem, model: nn.ModuleDict) -> Backward:
        weighting = mixed_in(name, problem.tasks, list(model["trunk"].parameters()))
        return lambda losses, _: weighting.backward(torch.stack(list(losses.values())), **arguments)

    return side


PLAIN: dict[str, Side] = {"ew": equal_weights, "loop": bare_loop, "representation floor": representation_floor}
INTERVAL = 5
ENGINES: dict[str, Side] = {
    "exact": engine("exact"),
    "layerwise": engine("layerwise"),
    "auto": engine("auto"),
    "representation": engine("representation"),
    "subset": subset,
    "interval": engine({"kind": "interval", "every": INTERVAL}),
}
TORCHJD: dict[str, Side] = {
    "torchjd": torchjd(None),
    "torchjd, one row at a time": torchjd(1),
    "torchjd, by Gramian": torchjd(1, gramian=True),
}
LIBMTL: dict[str, Side] = {"LibMTL, MGDA": libmtl("MGDA", mgda_gn="none")}
LOSSES: dict[str, Side] = {
    "equal": loss_rule("equal"),
    "uncertainty": loss_rule("uncertainty"),
    "two forwards": two_forwards,
    "famo": loss_rule("famo"),
    "famo, next batch": loss_rule("famo", lookahead="next_batch"),
}
