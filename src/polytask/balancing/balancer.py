"""The balancer: any rule in anybody's training loop."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from polytask.balancing import distribution
from polytask.balancing.exact import Partition, partition
from polytask.balancing.report import BackwardReport
from polytask.balancing.scale import rescaled
from polytask.core.catalogue import Catalogue
from polytask.core.constraints import Choice
from polytask.core.errors import BadValue, CheckpointError, MissingInput, NotFinite, UnknownName
from polytask.core.rules import RuleSpec, find
from polytask.core.state import Rule
from polytask.core.task_vectors import TaskVectors

ENGINES = Catalogue("engine", {"exact": "polytask.balancing.exact:ExactEngine"})
GROUPS = Choice("all", "layer", "tensor")
SCALES = Choice("published", "sum", "mean", "unit")

Model = nn.Module | Mapping[str, Tensor] | Iterable[Tensor]


class Balancer:
    """Turns the tasks' losses into gradients by a rule.

        balancer = polytask.balancer("upgrad")
        report = balancer.backward({"left": loss_left, "right": loss_right}, model)   # instead of (a + b).backward()
        optimizer.step()
        balancer.after_step()

    Args:
        rule: a registered rule's name, or its spec.
        tasks: every task that may be present, in order; by default those of the first call.
        engine: how per-task gradients are obtained.
        groups: "all" shared parameters at once, or a rule of its own for each "layer" (module) or "tensor".
        scale: "published", or the result as a "sum" or "mean" over tasks, or of "unit" norm, so that another rule is
            not another learning rate.
        priority: task -> how much it matters; scaled to mean 1. A rule with a published preference vector takes it as
            that, for every other rule it multiplies the loss.
        seed: of a random rule.
        parameters: of the rule.
    """

    def __init__(
        self,
        rule: str | RuleSpec,
        *,
        tasks: Sequence[str] | None = None,
        engine: str = "exact",
        groups: str = "all",
        scale: str = "published",
        priority: Mapping[str, float] | None = None,
        seed: int = 0,
        **parameters: Any,
    ) -> None:
        self.spec = find(rule) if isinstance(rule, str) else rule
        where = f"rule {self.spec.name!r}"
        for name, choice, value in (("groups", GROUPS, groups), ("scale", SCALES, scale)):
            if not choice.allows(value):
                raise BadValue(name, value, str(choice), where)
        if groups != "all" and self.spec.needs == ("losses",):
            raise BadValue("groups", groups, "all: the rule weighs losses, not gradients", where)
        if scale == "unit" and self.spec.needs == ("losses",):
            raise BadValue(
                "scale", scale, "published | sum | mean: the rule sees no gradient whose norm it could set", where
            )
        for task, value in (priority or {}).items():
            if not value > 0:
                raise BadValue(f"the priority of task {task!r}", value, "a number above 0", where)
        self.tasks = list(tasks) if tasks is not None else None
        self.engine = ENGINES.find(engine)()
        self.groups, self.scale, self.priority = groups, scale, dict(priority or {})
        self._new_rule: Callable[[list[str]], Rule] = lambda names: Rule(self.spec, names, seed=seed, **parameters)
        self._new_rule(["checks the parameters"])
        self._rules: dict[str, Rule] = {}
        self.step = 0

    def backward(
        self,
        losses: Mapping[str, Tensor],
        model: Model | None = None,
        *,
        shared: Sequence[str] | None = None,
        counts: Mapping[str, float] | None = None,
        scaler: torch.amp.GradScaler | None = None,
    ) -> BackwardReport:
        """Adds the combined gradient to `.grad`, as `loss.backward()` does.

        Args:
            losses: task -> 0-d loss; tasks may be absent, the rule then sees the others.
            model: a module, {name: parameter} or parameters; rules that weigh losses do not need it on one process.
            shared: names of the parameters to balance, where the graph should not decide (default: reached by two
                or more tasks).
            counts: task -> number of labels behind its mean; used to average over processes.
            scaler: a GradScaler; gradients are left scaled, as scaler.step expects.

        Raises: NotFinite naming the task and step; MissingInput if nothing is shared. Nothing is then written into
                `.grad`.
        """
        if not losses and not distribution.active():
            raise MissingInput(f"rule {self.spec.name!r}: no task is present in this step")
        self._learn_tasks(losses)
        tasks, values, local = self._present(losses, counts)
        self._refuse_infinite(tasks, values, scaler)
        priority = self._priority(tasks)
        if self.spec.needs == ("losses",):
            report = self._weigh_losses(tasks, values, local, priority, model, scaler)
        else:
            report = self._combine_gradients(tasks, values, local, priority, model, shared, scaler)
        self.step += 1
        for rule in self._rules.values():
            rule.advance()
        return report

    def after_step(self) -> None:
        """Call after the optimiser's step.

        Rules that look at the losses again do it here; the present ones have nothing to do.
        """

    def after_epoch(self) -> None:
        """Call when an epoch ends, for rules that compare epochs (dwa)."""
        for rule in self._rules.values():
            rule.after_epoch()

    def state_dict(self) -> dict[str, Any]:
        """Everything the next step depends on; load it into a balancer made with the same arguments."""
        rules = {group: rule.state_dict() for group, rule in self._rules.items()}
        return {"rule": self.spec.name, "tasks": self.tasks, "step": self.step, "rules": rules}

    def load_state_dict(self, values: Mapping[str, Any]) -> None:
        if values["rule"] != self.spec.name:
            raise CheckpointError(
                f"the saved state is of rule {values['rule']!r}, this balancer's is {self.spec.name!r}"
            )
        if self.tasks is not None and values["tasks"] is not None and self.tasks != list(values["tasks"]):
            raise CheckpointError(f"the saved state is of tasks {values['tasks']}, this balancer's are {self.tasks}")
        self.tasks = self.tasks or values["tasks"]
        self.step = values["step"]
        for group, saved in values["rules"].items():
            self._rule(group).load_state_dict(saved)

    def _weigh_losses(
        self,
        tasks: list[str],
        values: Tensor,
        local: Mapping[str, Tensor],
        priority: Tensor,
        model: Model | None,
        scaler: Any,
    ) -> BackwardReport:
        weights = self._weights("all", tasks, {"losses": values}, priority)
        present = [local[task] for task in tasks if task in local]
        parts = [loss * weight for loss, weight in zip(present, self._local(weights, tasks, local), strict=True)]
        if distribution.active():
            if model is None:
                raise MissingInput("under torch.distributed backward needs the model: backward(losses, model)")
            self._reduced_backward(parts, _named(model), scaler)
        else:
            total = torch.stack(parts).sum() if len(parts) > 1 else parts[0]
            (scaler.scale(total) if scaler is not None else total).backward()
        return BackwardReport(tasks, values, {"all": weights})

    def _reduced_backward(self, parts: list[Tensor], named: Mapping[str, Tensor], scaler: Any) -> None:
        """Gradients of the weighted sum, summed over processes, added to .grad; every process sends every parameter."""
        trainable = [parameter for parameter in named.values() if parameter.requires_grad]
        if parts:
            total = torch.stack(parts).sum()
            total = scaler.scale(total) if scaler is not None else total
            grads = [*torch.autograd.grad(total, trainable, allow_unused=True)]
        else:
            grads = [None] * len(trainable)
        reaches = distribution.union(torch.tensor([grad is not None for grad in grads]))
        for parameter, grad, used in zip(trainable, grads, reaches.tolist(), strict=True):
            if used:
                if grad is None:
                    summed = torch.zeros_like(parameter)
                else:
                    summed = grad.to_dense() if grad.is_sparse else grad.contiguous()
                distribution.sum_in_place([summed])
                _accumulate(parameter, summed)

    def _combine_gradients(
        self,
        tasks: list[str],
        values: Tensor,
        local: Mapping[str, Tensor],
        priority: Tensor,
        model: Model | None,
        shared: Sequence[str] | None,
        scaler: Any,
    ) -> BackwardReport:
        if model is None:
            raise MissingInput(f"rule {self.spec.name!r} reads gradients and needs the model: backward(losses, model)")
        part = partition(local, tasks, _named(model), shared)
        scaled = {task: scaler.scale(loss) for task, loss in local.items()} if scaler is not None else local
        vectors, private = self.engine.gradients(scaled, tasks, part)
        factor = float(scaler.get_scale()) if scaler is not None else 1.0
        groups = self._grouped(part)
        grams = {group: vectors.gram(names) / factor**2 for group, names in groups.items()}
        total = torch.stack(list(grams.values())).sum(0)
        infinite = [task for task, square in zip(tasks, total.diagonal(), strict=True) if not square.isfinite()]
        if infinite and scaler is None:
            raise NotFinite(f"the gradient of task {infinite[0]!r} is not finite at step {self.step}")
        if infinite:  # overflow under the scaler: leave the infinities where it looks for them, it skips the step
            combined, weights = vectors.combined(torch.ones(len(tasks))), {}
        else:
            combined, weights = self._combined(groups, grams, vectors, tasks, values, priority)
        for name, grad in [*combined.items(), *private.items()]:
            _accumulate(part.parameters[name], grad)
        return BackwardReport(
            tasks, values, weights, gram=total, route={"all": "exact"}, shared=part.shared, skipped=bool(infinite)
        )

    def _combined(
        self,
        groups: dict[str, list[str]],
        grams: dict[str, Tensor],
        vectors: TaskVectors,
        tasks: list[str],
        values: Tensor,
        priority: Tensor,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """(parameter -> combined gradient, group -> weights)."""
        combined: dict[str, Tensor] = {}
        weights: dict[str, Tensor] = {}
        for group, names in groups.items():
            if self.spec.returns == "weights":
                weights[group] = self._weights(group, tasks, {"losses": values, "gram": grams[group]}, priority)
                combined |= vectors.combined(weights[group], names)
                continue
            rule = self._rule(group)
            for name in names:
                stack = vectors.stacks[name]
                factors = priority.to(stack).view(-1, *[1] * (stack.dim() - 1))
                combined[name] = rule(tasks, stack if not self.priority else stack * factors, keys=(name,))
            squared_norm = sum(combined[name].double().square().sum().item() for name in names)
            scale = rescaled(self.spec.scale, self.scale, len(tasks), squared_norm)
            for name in names if scale != 1.0 else []:
                combined[name] = combined[name] * scale
        return combined, weights

    def _weights(self, group: str, tasks: list[str], inputs: dict[str, Tensor], priority: Tensor) -> Tensor:
        """The rule's weights for a group, with priority and scale applied, float64 [T]."""
        multiplied = torch.ones_like(priority) if self.spec.prefers else priority
        seen = {"losses": inputs["losses"] * multiplied}
        if "gram" in inputs:
            seen["gram"] = inputs["gram"] * multiplied[:, None] * multiplied
        weights = self._rule(group)(tasks, *(seen[need] for need in self.spec.needs), priority=priority) * multiplied
        square = float(weights @ inputs["gram"] @ weights) if "gram" in inputs else 0.0
        return weights * rescaled(self.spec.scale, self.scale, len(tasks), square)

    def _present(
        self, losses: Mapping[str, Tensor], counts: Mapping[str, float] | None
    ) -> tuple[list[str], Tensor, Mapping[str, Tensor]]:
        for task, loss in losses.items():
            if loss.dim() != 0:
                raise BadValue(f"the shape of the loss of task {task!r}", tuple(loss.shape), "() : one number a task")
        if distribution.active():
            reduced = distribution.reduced_losses(losses, counts, self.tasks)
            return reduced.tasks, reduced.values, reduced.local
        return list(losses), torch.stack([loss.detach() for loss in losses.values()]).double().cpu(), losses

    def _refuse_infinite(self, tasks: list[str], values: Tensor, scaler: Any) -> None:
        if not bool(values.isfinite().all()):
            worst = next(i for i, value in enumerate(values.tolist()) if not torch.tensor(value).isfinite())
            raise NotFinite(f"the loss of task {tasks[worst]!r} is {values[worst].item()} at step {self.step}")

    def _learn_tasks(self, losses: Mapping[str, Tensor]) -> None:
        if self.tasks is None and not distribution.active():
            self.tasks = list(losses)
        for task in losses:
            if self.tasks is not None and task not in self.tasks:
                hint = "; name all tasks with balancer(..., tasks=[...]) if some are absent from the first step"
                raise UnknownName("task", task, [*self.tasks], f"rule {self.spec.name!r}{hint}")
        for task in self.priority:
            if self.tasks is not None and task not in self.tasks:
                raise UnknownName("task", task, self.tasks, "priority")

    def _priority(self, tasks: list[str]) -> Tensor:
        given = torch.tensor([float(self.priority.get(task, 1.0)) for task in tasks], dtype=torch.float64)
        return given / given.mean()

    def _local(self, weights: Tensor, tasks: list[str], local: Mapping[str, Tensor]) -> list[float]:
        return [weight for weight, task in zip(weights.tolist(), tasks, strict=True) if task in local]

    def _grouped(self, part: Partition) -> dict[str, list[str]]:
        if self.groups == "all":
            return {"all": part.shared}
        groups: dict[str, list[str]] = {}
        for name in part.shared:
            groups.setdefault(name if self.groups == "tensor" else name.rpartition(".")[0] or name, []).append(name)
        return groups

    def _rule(self, group: str) -> Rule:
        if group not in self._rules:
            assert self.tasks is not None
            self._rules[group] = self._new_rule(self.tasks)
        return self._rules[group]


def balancer(rule: str | RuleSpec, **options: Any) -> Balancer:
    """A balancer by the rule's name; see `Balancer` for the options."""
    return Balancer(rule, **options)


def _named(model: Model) -> dict[str, Tensor]:
    if isinstance(model, nn.Module):
        return dict(model.named_parameters())
    if isinstance(model, Mapping):
        return {str(name): parameter for name, parameter in model.items()}
    return {f"parameter.{i}": parameter for i, parameter in enumerate(model)}


def _accumulate(parameter: Tensor, grad: Tensor) -> None:
    if parameter.grad is None:
        parameter.grad = grad.detach()
    else:
        parameter.grad = (
            parameter.grad + grad.detach() if parameter.grad.is_sparse else parameter.grad.add_(grad.detach())
        )
