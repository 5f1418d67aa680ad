"""The balancer: any rule in anybody's training loop."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from polytask.balancing import distribution
from polytask.balancing.accumulation import accumulate, as_sparse, infinite, set_aside, usable_graph
from polytask.balancing.exact import distributed_gradients
from polytask.balancing.partition import Partition, partition
from polytask.balancing.report import BackwardReport
from polytask.balancing.scale import rescaled
from polytask.core.catalogue import Catalogue
from polytask.core.constraints import Choice, Interval, check_parameters
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
        priority: task -> how much it matters; its mean over all tasks is set to 1. A rule with a published preference
            vector takes it as that, for every other rule it multiplies the loss.
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
            if not Interval(0, open="left").allows(value):
                raise BadValue(f"the priority of task {task!r}", value, "a number above 0", where)
        self.tasks = list(tasks) if tasks is not None else None
        self.engine = ENGINES.find(engine)()
        self.groups, self.scale, self.priority = groups, scale, dict(priority or {})
        self._new_rule: Callable[[list[str]], Rule] = lambda names: Rule(self.spec, names, seed=seed, **parameters)
        self.parameters = check_parameters(self.spec.parameters, parameters, where)
        if tasks is not None:
            self._new_rule(self.tasks or [])  # checks the tasks that parameters name
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
        self._learn_tasks(losses)
        tasks, values, local = self._present(losses, counts, model)
        if not tasks:
            if distribution.active():  # no process has a label: the same for all of them
                return BackwardReport([], values, {})
            raise MissingInput(f"rule {self.spec.name!r}: no task is present at step {self.step}")
        self._refuse_infinite(tasks, values)
        priority = self._priority(tasks)
        states = {group: rule.state for group, rule in self._rules.items()}
        try:
            if self.spec.needs == ("losses",):
                report = self._weigh_losses(tasks, values, local, priority, model, scaler)
            else:
                report = self._combine_gradients(tasks, values, local, priority, model, shared, scaler)
        except BaseException:  # a step that did not happen leaves no trace in the rule
            self._rules = {group: rule for group, rule in self._rules.items() if group in states}
            for group, state in states.items():
                self._rules[group].state = state
            raise
        self.step += 1
        for rule in self._rules.values():
            rule.advance()
        return report

    @property
    def looks_again(self) -> bool:
        """Whether `after_step` needs the losses of the same batch after the optimiser's step: a second forward."""
        return self.spec.looks_again(self.parameters)

    def after_step(
        self, losses: Mapping[str, Tensor] | None = None, *, counts: Mapping[str, float] | None = None
    ) -> None:
        """Call after the optimiser's step; a rule that looks at the losses again needs them, on the same batch."""
        if not self.looks_again:
            return
        if losses is None:
            raise MissingInput(f"rule {self.spec.name!r} looks at the losses after the step: after_step(losses)")
        tasks, values, _ = self._present(losses, counts, None)
        if not tasks:
            return
        self._refuse_infinite(tasks, values)
        values = values if self.spec.prefers else values * self._priority(tasks)  # as the rule saw them before
        for rule in self._rules.values():
            rule.after_step(tasks, values)

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
        parts = [
            local[task] if weight == 1.0 else local[task] * weight
            for task, weight in zip(tasks, weights.tolist(), strict=True)
            if task in local
        ]
        total = sum(parts[1:], start=parts[0]) if parts else None
        total = scaler.scale(total) if total is not None and scaler is not None else total
        named = {} if model is None else _trainable(model)
        if distribution.active():
            if model is None:
                raise MissingInput("under torch.distributed backward needs the model: backward(losses, model)")
            grads = distributed_gradients(total, tasks, named, self.step)
            skipped = self._refuse_infinite_gradients(grads, scaler)
            for name, grad in grads.items():
                accumulate(named[name], grad)
        else:
            assert total is not None  # on one process every present task is local
            with usable_graph(f"tasks {', '.join(tasks)}", self.step), set_aside(named.values()):
                total.backward()
                grads = {name: parameter.grad for name, parameter in named.items() if parameter.grad is not None}
                skipped = self._refuse_infinite_gradients(grads, scaler)
        return BackwardReport(tasks, values, {"all": weights}, skipped=skipped)

    def _refuse_infinite_gradients(self, grads: Mapping[str, Tensor], scaler: Any) -> bool:
        """True if some gradient is not finite and a GradScaler will see it; NotFinite if there is no scaler."""
        bad = infinite(grads)
        if bad and scaler is None:
            raise NotFinite(f"the gradient of {bad[0]!r} is not finite at step {self.step}, though the losses are")
        return bool(bad)

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
        found = self.engine.gradients(scaled, tasks, part, step=self.step)
        factor = float(scaler.get_scale()) if scaler is not None else 1.0
        groups = self._grouped(part)
        grams = {group: found.shared.gram(names) / factor**2 for group, names in groups.items()}
        total = torch.stack(list(grams.values())).sum(0)
        overflow = self._overflow(total, found.private, tasks, part, scaler)
        if overflow:  # leave the infinities where the scaler looks for them: it will skip the step
            combined, weights = found.shared.combined(torch.ones(len(tasks))), {}
        else:
            combined, weights = self._combined(groups, grams, found.shared, tasks, values, priority)
        for name, rows in found.rows.items():
            combined[name] = as_sparse(combined[name], rows)
        for name, grad in [*combined.items(), *found.private.items()]:
            accumulate(part.parameters[name], grad)
        route = dict.fromkeys(groups, "exact")
        return BackwardReport(tasks, values, weights, gram=total, route=route, shared=part.shared, skipped=overflow)

    def _overflow(
        self, gram: Tensor, private: Mapping[str, Tensor], tasks: list[str], part: Partition, scaler: Any
    ) -> bool:
        """True if some gradient is not finite and a GradScaler will see it; NotFinite if there is no scaler."""
        bad = [task for task, square in zip(tasks, gram.diagonal(), strict=True) if not square.isfinite()]
        bad += [part.owner(name, tasks) for name in infinite(private)]
        if bad and scaler is None:
            raise NotFinite(f"the gradient of task {bad[0]!r} is not finite at step {self.step}")
        return bool(bad)

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
        self, losses: Mapping[str, Tensor], counts: Mapping[str, float] | None, model: Model | None
    ) -> tuple[list[str], Tensor, Mapping[str, Tensor]]:
        """(tasks present, in the balancer's order; their losses, over all processes; this process's part of them)."""
        for task, loss in losses.items():
            if loss.dim() != 0:
                raise BadValue(f"the shape of the loss of task {task!r}", tuple(loss.shape), "(), one number a task")
            if counts is not None and task not in counts:
                raise UnknownName("task", task, counts, "counts=")
        if distribution.active():
            tensors = [*losses.values(), *(_named(model).values() if model is not None else ())]
            device = tensors[0].device if tensors else torch.device("cpu")
            reduced = distribution.reduced_losses(losses, counts, self.tasks, device)
            return reduced.tasks, reduced.values, reduced.local
        tasks = [task for task in self.tasks or [] if task in losses and (counts is None or counts[task] > 0)]
        if not tasks:
            return [], torch.zeros(0, dtype=torch.float64), {}
        present = {task: losses[task] for task in tasks}
        return tasks, torch.stack([loss.detach() for loss in present.values()]).double().cpu(), present

    def _refuse_infinite(self, tasks: list[str], values: Tensor) -> None:
        finite = values.isfinite()
        if not bool(finite.all()):
            worst = int(finite.int().argmin())
            raise NotFinite(f"the loss of task {tasks[worst]!r} is {values[worst].item()} at step {self.step}")

    def _learn_tasks(self, losses: Mapping[str, Tensor]) -> None:
        if self.tasks is None and not distribution.active():
            self._new_rule(list(losses))
            self.tasks = list(losses)
        for task in losses:
            if self.tasks is not None and task not in self.tasks:
                hint = " (name all tasks with balancer(..., tasks=[...]) if some are absent from the first step)"
                raise UnknownName("task", task, self.tasks, f"rule {self.spec.name!r}{hint}")
        for task in self.priority:
            if self.tasks is not None and task not in self.tasks:
                raise UnknownName("task", task, self.tasks, "priority")

    def _priority(self, tasks: list[str]) -> Tensor:
        """The present tasks' priorities, with mean 1 over all tasks: a task's does not depend on who is present."""
        every = self.tasks or tasks
        mean = sum(self.priority.get(task, 1.0) for task in every) / len(every)
        return torch.tensor([self.priority.get(task, 1.0) / mean for task in tasks], dtype=torch.float64)

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


def _trainable(model: Model) -> dict[str, Tensor]:
    return {name: parameter for name, parameter in _named(model).items() if parameter.requires_grad}
