"""Checks of rules that are procedures: one small problem, a batch of it to train on and one to validate on."""

import copy
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from polytask.balancing import Balancer
from polytask.core.catalogue import documentation
from polytask.core.errors import MissingInput, NotFinite
from polytask.core.noise import Noise
from polytask.core.rules import RuleSpec
from polytask.testing.contract import generators
from polytask.testing.refusals import refusal

TASKS = ["a", "b", "c"]


class Problem(nn.Module):
    """Three tasks on a trunk with dropout and batch normalization; a generator makes the labels of the last."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Linear(4, 6)
        self.norm = nn.BatchNorm1d(6)
        self.heads = nn.ModuleDict({task: nn.Linear(6, 1) for task in TASKS})
        self.generator = nn.Linear(4, 1)
        self.double()
        for name, parameter in self.named_parameters():
            values = torch.from_numpy(0.5 * Noise(0, name).normal(parameter.numel()))
            parameter.data.copy_(values.view(parameter.shape))

    def forward(self, number: int, tasks: Sequence[str]) -> dict[str, Tensor]:
        """task -> loss."""
        x = torch.from_numpy(Noise(1, number).normal(40)).view(10, 4)
        hidden = self.norm(self.trunk(x)).tanh()
        keep = torch.from_numpy(Noise(2, number).uniform(60)).view(10, 6) < 0.8  # the same in each pass
        labels = {"a": x[:, 0], "b": x[:, 1], "c": self.generator(x)[:, 0]}
        return {task: (self.heads[task](hidden * keep)[:, 0] - labels[task]).square().mean() for task in tasks}


class Run:
    """Some steps of a rule on the problem."""

    def __init__(self, spec: RuleSpec, seed: int = 0) -> None:
        self.model = Problem()
        self.balancer = Balancer(spec, tasks=TASKS, seed=seed)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.05)

    def losses(
        self, number: int, tasks: Sequence[str], parameters: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        buffers = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
        return functional_call(self.model, {**buffers, **(parameters or {})}, (number, tasks))

    def backward(self, number: int = 0, tasks: Sequence[str] = TASKS) -> Any:
        def forward(parameters: Mapping[str, Tensor] | None = None, batch: int | str = 0) -> dict[str, Tensor]:
            return self.losses(100 + number if batch == "validation" else number, tasks, parameters)

        counts = dict.fromkeys(tasks, 10.0)
        return self.balancer.backward(self.model(number, tasks), self.model, forward=forward, counts=counts)

    def step(self, number: int = 0, tasks: Sequence[str] = TASKS) -> None:
        self.optimizer.zero_grad()
        self.backward(number, tasks)
        self.optimizer.step()
        self.balancer.after_step(self.losses(number, tasks))
        self.balancer.after_epoch()


def gives_finite_gradients(spec: RuleSpec) -> None:
    """Every parameter has a finite gradient, of all tasks and of one."""
    for tasks in (TASKS, ["b"]):
        run = Run(spec)
        report = run.backward(0, tasks)
        assert report.tasks == tasks, f"the report is of {report.tasks}, not of {tasks}"
        for name, parameter in run.model.named_parameters():
            if tasks == ["b"] and name.startswith(("heads.a", "heads.c", "generator")):
                continue
            assert parameter.grad is not None, f"{name} has no gradient"
            assert parameter.grad.isfinite().all(), f"the gradient of {name} is not finite"


def adds_to_gradients(spec: RuleSpec) -> None:
    """As autograd does: what is in .grad already stays in the sum."""
    fresh, kept = Run(spec), Run(spec)
    for parameter in kept.model.parameters():
        parameter.grad = torch.full_like(parameter, 3.0)
    fresh.backward()
    kept.backward()
    for (name, a), b in zip(fresh.model.named_parameters(), kept.model.parameters(), strict=True):
        assert a.grad is not None
        assert b.grad is not None
        assert torch.allclose(a.grad + 3.0, b.grad), f"the gradient of {name} replaces what was there"


def leaves_the_model_alone(spec: RuleSpec) -> None:
    """Parameters do not change before the optimiser's step, and a batch counts once in the running statistics."""
    run, plain = Run(spec), Problem()
    plain(0, TASKS)
    run.backward()
    for name, value in run.model.state_dict().items():
        assert torch.equal(value, plain.state_dict()[name]), f"backward changed {name}"


def repeats_itself(spec: RuleSpec) -> None:
    """The same seed, the same bits; torch's and numpy's generators do not move (Python's serves type checkers too)."""
    runs = [Run(spec, seed=3), Run(spec, seed=3)]
    for run in runs:
        for number in range(3):
            before = generators()
            run.step(number)
            after = generators()
            moved = [name for name in ("torch", "numpy") if after[name] != before[name]]
            assert not moved, f"the rule moved the global random state of {', '.join(moved)}"
    _same(*(run.model.state_dict() for run in runs), "the same seed gave two results")


def resumes_from_its_state(spec: RuleSpec) -> None:
    """Some steps, saved and loaded into a fresh balancer, and one more are bit for bit the steps without a stop."""
    present = [TASKS, ["a", "c"], TASKS, ["b"], TASKS]
    straight, broken = Run(spec), Run(spec)
    for number, tasks in enumerate(present):
        straight.step(number, tasks)
        if number in (1, 3):
            saved = copy.deepcopy(broken.balancer.state_dict())
            broken.balancer = Balancer(spec, tasks=TASKS)
            broken.balancer.load_state_dict(saved)
        broken.step(number, tasks)
    _same(straight.model.state_dict(), broken.model.state_dict(), "a resumed rule gives another result")


def lets_absent_tasks_wait_in_a_run(spec: RuleSpec) -> None:
    """The state of a task that is absent does not change."""
    run = Run(spec)
    run.step(0)
    before = _entries(run.balancer.state_dict()["rules"]["own"], 1)
    run.step(1, ["a", "c"])
    _same(before, _entries(run.balancer.state_dict()["rules"]["own"], 1), "an absent task's state changed")


def refuses_what_it_cannot_use(spec: RuleSpec) -> None:
    """A missing `forward` is named, and so is the task of a loss that is not finite; `.grad` stays empty."""
    run = Run(spec)
    message = refusal(lambda: run.balancer.backward(run.model(0, TASKS), run.model), MissingInput)
    assert "forward=" in message, f"a step without forward= raises no error that names it: {message}"
    losses = run.model(0, TASKS)
    losses["b"] = losses["b"] * math.nan

    def again(parameters: Mapping[str, Tensor] | None = None, batch: int | str = 0) -> Mapping[str, Tensor]:
        return losses

    message = refusal(lambda: run.balancer.backward(losses, run.model, forward=again), NotFinite)
    assert "'b'" in message, f"a loss that is not finite raises no error that names its task: {message}"
    assert all(parameter.grad is None for parameter in run.model.parameters()), "a refused step leaves gradients"


def says_its_cost_in_passes(spec: RuleSpec) -> None:
    """The cost, in passes, is in the docstring of the file: a procedure's is not one backward pass a task."""
    cost = re.search(r"^Cost\b.*", documentation(spec.function), re.MULTILINE | re.DOTALL)
    assert cost, "the docstring has no line 'Cost'"
    assert "pass" in cost[0], "the cost says nothing of forward or backward passes"


def _entries(state: Mapping[str, Any], row: int) -> dict[str, Any]:
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor) and value.dim()}
    return {name: value[row] for name, value in tensors.items() if len(value) == len(TASKS)}


def _same(a: Mapping[str, Tensor], b: Mapping[str, Tensor], problem: str) -> None:
    differ = [name for name in a if not torch.equal(a[name].nan_to_num(), b[name].nan_to_num())]
    assert not differ, f"{problem}: {', '.join(differ)}"


CHECKS: dict[str, Callable[[RuleSpec], None]] = {
    check.__name__: check
    for check in (
        gives_finite_gradients,
        adds_to_gradients,
        leaves_the_model_alone,
        repeats_itself,
        resumes_from_its_state,
        lets_absent_tasks_wait_in_a_run,
        refuses_what_it_cannot_use,
        says_its_cost_in_passes,
    )
}
