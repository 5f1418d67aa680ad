"""The balancer: any rule in anybody's training loop."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from polytask.balancing import distribution
from polytask.balancing.accumulation import accumulate
from polytask.balancing.batches import Batches, in_batches, independent, one_batch
from polytask.balancing.clusters import Clusters, clusters_of
from polytask.balancing.double_sampling import DoubleSamplingEngine
from polytask.balancing.engine import Combined, Step
from polytask.balancing.given import check_read, more_inputs, require
from polytask.balancing.group_rules import GroupRules
from polytask.balancing.micro_batches import MicroBatches, combined_parts
from polytask.balancing.options import check_engine, check_gram, check_options, check_parts, new_engine
from polytask.balancing.procedure_rules import ProcedureRules, applied
from polytask.balancing.report import BackwardReport
from polytask.balancing.session import Forward, Session
from polytask.balancing.step_losses import Model, StepLosses, named_parameters, step_losses
from polytask.balancing.two_passes import combined_again, first_pass
from polytask.balancing.weigh_losses import weigh_losses
from polytask.core.constraints import Interval, check_parameters
from polytask.core.errors import BadValue, CheckpointError, MissingInput, UnknownName
from polytask.core.rules import RuleSpec, find
from polytask.core.state import Rule


class Balancer:
    """Turns the tasks' losses into gradients by a rule.

        balancer = polytask.balancer("upgrad")
        report = balancer.backward({"left": loss_left, "right": loss_right}, model)   # instead of (a + b).backward()
        optimizer.step()
        balancer.after_step()

    Args:
        rule: a registered rule's name, or its spec.
        tasks: every task that may be present, in order; by default those of the first call.
        engine: how per-task gradients are obtained: "auto", "exact", "layerwise", "representation", "subset" or
            "interval", or with its options {"kind": "interval", "every": 10}.
        groups: "all" shared parameters at once, or a rule of its own for each "layer" (module) or "tensor".
        scale: "published", or the result as a "sum" or "mean" over tasks, or of "unit" norm, so that another rule is
            not another learning rate.
        priority: task -> how much it matters; its mean over all tasks is set to 1. A rule with a published preference
            vector takes it as that, for every other rule it multiplies the loss.
        clusters: tasks that are one to the rule, {cluster: [tasks]}, or intervals of the tasks' order,
            {"kind": "index", "number": 5} (see `interval_clusters`). Where the rule or the report names tasks, it then
            names clusters.
        gram: of a batch in parts: "kept" gradients (`accumulate`), "recomputed" or the approximate "micro_mean"
            (`backward_parts`).
        seed: of a random rule.
        parameters: of the rule.
    """

    def __init__(
        self,
        rule: str | RuleSpec,
        *,
        tasks: Sequence[str] | None = None,
        engine: str | Mapping[str, Any] = "auto",
        groups: str = "all",
        scale: str = "published",
        priority: Mapping[str, float] | None = None,
        clusters: Mapping[str, Any] | None = None,
        gram: str = "kept",
        seed: int = 0,
        **parameters: Any,
    ) -> None:
        self.spec = find(rule) if isinstance(rule, str) else rule
        where = f"rule {self.spec.name!r}"
        self.parameters = check_parameters(self.spec.parameters, parameters, where)
        self.applied, inner = applied(self.spec, self.parameters)
        self._applied_parameters = check_parameters(self.applied.parameters, inner, f"rule {self.applied.name!r}")
        check_options(self.applied, groups, scale, f"rule {self.applied.name!r}")
        for task, value in (priority or {}).items():
            if not Interval(0, open="left").allows(value):
                raise BadValue(f"the priority of task {task!r}", value, "a number above 0", where)
        self._clusters = None if clusters is None else Clusters(clusters_of(clusters, tasks), priority or {})
        if self._clusters is not None:
            tasks = list(self._clusters.members)
            priority = self._clusters.priority if priority else None
        self.tasks = list(tasks) if tasks is not None else None
        self.engine_name, self.engine = new_engine(engine, where)
        check_engine(self.spec, self.engine_name, where)
        self.engine.check(self.spec, groups, scale)
        if self.spec.double_sampling:
            self.engine = DoubleSamplingEngine()
        check_gram(self.spec, gram, self.engine_name, groups, scale, where)
        self.groups, self.scale, self.gram, self.priority = groups, scale, gram, dict(priority or {})
        self._new_rule: Callable[[list[str]], Rule] = lambda names: Rule(self.spec, names, seed=seed, **parameters)
        self._new_applied: Callable[[list[str]], Rule] = lambda names: Rule(self.applied, names, seed=seed, **inner)
        if self.tasks is not None:
            self._new_rule(self.tasks), self._new_applied(self.tasks)  # an error if a parameter names another task
        self._rules = self._new_rules()
        self.step = 0
        self._parts: MicroBatches | None = None  # of the step that is being accumulated

    def accumulate(
        self,
        losses: Mapping[str, Tensor],
        model: Model,
        *,
        counts: Mapping[str, float] | None = None,
        scaler: torch.amp.GradScaler | None = None,
    ) -> None:
        """Takes a part of the step's batch, means over `counts` labels; `backward` takes the last and balances all."""
        check_parts(self.spec, self.engine_name, self.gram, again=False)
        one_batch(losses, f"rule {self.spec.name!r}")
        if self._clusters is not None:
            losses, counts = self._clusters.joined(losses, counts, self.step)
        self._learn_tasks(losses)
        self._parts = self._parts or MicroBatches()
        factor = 1.0 if scaler is None else float(scaler.scale(torch.ones(())))
        self._parts.add(losses, counts, named_parameters(model), self.step, factor)

    def backward(
        self,
        losses: Mapping[str, Tensor] | Sequence[Mapping[str, Tensor]],
        model: Model | None = None,
        *,
        representation: Tensor | Sequence[Tensor] | None = None,
        subset: Mapping[str, Tensor] | None = None,
        shared: Sequence[str] | None = None,
        forward: Forward | None = None,
        counts: Mapping[str, float] | Sequence[Mapping[str, float]] | None = None,
        scaler: torch.amp.GradScaler | None = None,
    ) -> BackwardReport:
        """Adds the combined gradient to `.grad`, as `loss.backward()` does.

        Args:
            losses: task -> 0-d loss; tasks may be absent, the rule then sees the others. For a rule that needs
                `cross_gram` two or three such mappings, of independent batches.
            model: a module, {name: parameter} or parameters; rules that weigh losses do not need it on one process.
            representation: for engine "representation": the tensor, or tensors, that all heads read; the losses must
                have been computed from these very tensors.
            subset: for engine "subset": the same tasks' losses on a part of the rows, from a forward pass of their own.
            shared: names of the parameters to balance, where the graph should not decide (default: reached by two
                or more tasks); not for rules that weigh losses.
            forward: the losses as a function, `forward(parameters=None, batch=0) -> losses`, for rules that need
                `forward` or `validation`; see `Forward`.
            counts: task -> number of labels behind its mean, used to average over processes and batches; one mapping
                a batch.
            scaler: a GradScaler; gradients are left scaled, as scaler.step expects.

        Raises: NotFinite naming the task and step; MissingInput if nothing is shared or the rule needs what was not
                given. Nothing is then written into `.grad`.
        """
        check_read(self.engine, self.engine_name, {"representation": representation, "subset": subset})
        given = self._given(losses, counts)
        require(self.spec, self.applied, model=model, forward=forward, counts=counts, scaler=scaler, shared=shared)
        if self._clusters is not None:
            forward = self._clusters.joining(forward, given[-1][1], self.step)
            given = [self._clusters.joined(*each, self.step) for each in given]
            subset = None if subset is None else self._clusters.joined(subset, None, self.step)[0]
        named = named_parameters(model)
        parts, self._parts = self._parts, None  # a step that fails is over
        whole = None if parts is None else self._whole(parts, given[0], named, scaler)
        found, batches = self._losses(given, named) if whole is None else (whole, None)
        if self._is_empty(found):
            return BackwardReport([], found.values, {})
        step = Step(
            number=self.step,
            tasks=found.tasks,
            values=found.values,
            losses=_scaled(found.local, scaler),
            batches=None if batches is None else replace(batches, losses=[_scaled(b, scaler) for b in batches.losses]),
            priority=self._priority(found.tasks),
            named=named,
            factor=None if scaler is None else float(scaler.get_scale()),
            shared=shared,
            representation=[representation] if isinstance(representation, Tensor) else list(representation or ()),
            subset=None if subset is None else _scaled(subset, scaler),
            more=more_inputs(self.applied, found, forward, self.tasks, self.step),
        )
        return self._taken(step, lambda: self._combined(step, forward, given[-1][1], parts, found))

    def backward_parts(
        self,
        forward: Forward,
        model: Model,
        *,
        parts: int,
        shared: Sequence[str] | None = None,
        counts: Sequence[Mapping[str, float]] | None = None,
        scaler: torch.amp.GradScaler | None = None,
    ) -> BackwardReport:
        """Adds the combined gradient of a batch in parts, with the memory of one gradient; `gram` says how it is seen.

        Args:
            forward: the losses of part 0, 1, ... as a function, `forward(parameters=None, batch=part) -> losses`; it is
                called several times for each part and must give the same every time (dropout), and change nothing.
            model, shared, scaler: as in `backward`.
            parts: how many; the same on every process.
            counts: for each part, task -> number of labels behind its mean.
        """
        check_parts(self.spec, self.engine_name, self.gram, again=True)
        require(self.spec, self.applied, model=model, forward=forward, counts=counts, scaler=scaler, shared=shared)
        if not 0 < parts == len(counts or range(parts)):
            raise BadValue("parts", parts, "1 or more, and as many as counts has", f"rule {self.spec.name!r}")
        number, clusters = self.step, self._clusters

        def compute(parameters: Mapping[str, Tensor] | None, part: int) -> Any:
            given = forward(parameters, part), None if counts is None else counts[part]
            return given if clusters is None else clusters.joined(*given, number)

        self._learn_tasks(compute(None, 0)[0] if self.tasks is None else {})
        named = named_parameters(model)
        found, again = first_pass(compute, parts, self.tasks or [], named, differentiable=not self.spec.weighs_losses)
        if self._is_empty(found):
            return BackwardReport([], found.values, {})
        step = Step(
            number=self.step,
            tasks=found.tasks,
            values=found.values,
            losses={},
            priority=self._priority(found.tasks),
            named=named,
            factor=None if scaler is None else float(scaler.scale(torch.ones(()))),
            shared=shared,
            more=more_inputs(self.applied, found, forward, self.tasks, self.step),
        )
        rules = self._rules
        assert isinstance(rules, GroupRules)  # procedures take no parts
        return self._taken(step, lambda: combined_again(step, again, rules, self.gram))

    @property
    def needs_validation(self) -> bool:
        """Whether `forward` is asked for the losses of a validation batch."""
        return "validation" in (*self.spec.needs, *self.applied.needs)

    @property
    def batches(self) -> int:
        """How many independent batches a step wants: as many mappings of losses."""
        return 3 if self.spec.double_sampling else 1

    @property
    def looks_again(self) -> bool:
        """Whether `after_step` needs the losses of the same batch after the optimiser's step: a second forward."""
        return self.applied.looks_again(self._applied_parameters)

    def after_step(
        self, losses: Mapping[str, Tensor] | None = None, *, counts: Mapping[str, float] | None = None
    ) -> None:
        """Call after the optimiser's step; a rule that looks at the losses again needs them, on the same batch."""
        if not self.looks_again:
            return
        if losses is None:
            raise MissingInput(f"rule {self.spec.name!r} looks at the losses after the step: after_step(losses)")
        if self._clusters is not None:
            losses, counts = self._clusters.joined(losses, counts, self.step)
        found = step_losses(losses, counts, self.tasks, {})
        if not found.tasks:
            return
        found.refuse_infinite(self.step)
        # as the rule saw them before
        values = found.values if self.applied.prefers else found.values * self._priority(found.tasks)
        for rule in self._rules:
            rule.after_step(found.tasks, values)

    def after_epoch(self) -> None:
        """Call when an epoch ends, for rules that compare epochs (dwa)."""
        for rule in self._rules:
            rule.after_epoch()

    def state_dict(self) -> dict[str, Any]:
        """Everything the next step depends on; load it into a balancer made with the same arguments."""
        return {
            "rule": self.spec.name,
            "tasks": self.tasks,
            "clusters": self._members,
            "step": self.step,
            "rules": self._rules.state_dict(),
            "engine": {"kind": self.engine_name, **self.engine.state_dict()},
        }

    def load_state_dict(self, values: Mapping[str, Any]) -> None:
        saved = {"rule": values["rule"], "engine": values["engine"]["kind"]}
        for what, own in (("rule", self.spec.name), ("engine", self.engine_name)):
            if saved[what] != own:
                raise CheckpointError(f"the saved state is of {what} {saved[what]!r}, this balancer's is {own!r}")
        if self.tasks is not None and values["tasks"] is not None and self.tasks != list(values["tasks"]):
            raise CheckpointError(f"the saved state is of tasks {values['tasks']}, this balancer's are {self.tasks}")
        if self._members != values["clusters"]:
            raise CheckpointError(f"the saved state is of clusters {values['clusters']}, here are {self._members}")
        self.tasks = self.tasks or values["tasks"]
        self.step = values["step"]
        self._rules.load_state_dict(values["rules"])
        self.engine.load_state_dict(values["engine"])

    def _new_rules(self) -> GroupRules | ProcedureRules:
        def new_applied() -> GroupRules:
            return GroupRules(
                self.applied,
                lambda: self._new_applied(self.tasks or []),
                groups=self.groups,
                scale=self.scale,
                prioritised=bool(self.priority),
            )

        if self.spec.form == "combine":
            return new_applied()
        return ProcedureRules(lambda: self._new_rule(self.tasks or []), new_applied)

    def _whole(self, parts: MicroBatches, last: Any, named: Mapping[str, Tensor], scaler: Any) -> StepLosses:
        """The losses over all parts of the step, this the last."""
        losses, counts = last
        self._learn_tasks(losses)
        parts.add(losses, counts, named, self.step, 1.0 if scaler is None else float(scaler.scale(torch.ones(()))))
        return parts.losses(self.tasks or [], next(iter(named.values())).device)

    def _is_empty(self, found: StepLosses) -> bool:
        """Whether no process has a label, which is no error where there are several; NotFinite names a bad loss."""
        if not found.tasks and not distribution.active():
            raise MissingInput(f"rule {self.spec.name!r}: no task is present at step {self.step}")
        found.refuse_infinite(self.step)
        return not found.tasks

    def _combined(
        self,
        step: Step,
        forward: Forward | None,
        counts: Mapping[str, float] | None,
        parts: MicroBatches | None,
        losses: StepLosses,
    ) -> Combined | BackwardReport:
        if isinstance(self._rules, ProcedureRules):
            assert forward is not None  # it was required
            return self._rules.run(Session(step, forward, self.tasks or [], counts, self._priority, self._rules.inner))
        if parts is not None:
            return combined_parts(parts, step, losses.counts, self._rules)
        if self.spec.weighs_losses:
            return weigh_losses(step, self._rules)
        return self.engine.combine(step, self._rules)

    def _taken(self, step: Step, combine: Callable[[], Combined | BackwardReport]) -> BackwardReport:
        """Writes the gradients, and counts the step."""
        states = self._rules.states()
        try:
            found = combine()
        except BaseException:  # a step that did not happen leaves no trace in the rule
            self._rules.restore(states)
            raise
        self.step += 1
        for rule in self._rules:
            rule.advance()
        if isinstance(found, BackwardReport):  # a rule on losses has written them already
            return found
        for parameter, grad in found.grads:
            accumulate(parameter, grad)
        return BackwardReport.of(step, found)

    @property
    def _members(self) -> dict[str, list[str]] | None:
        return None if self._clusters is None else self._clusters.members

    def _given(self, losses: Any, counts: Any) -> list[tuple[Mapping[str, Tensor], Mapping[str, float] | None]]:
        """Losses and counts of each batch; an error where there are not as many as the rule reads."""
        where = f"rule {self.spec.name!r}"
        return in_batches(losses, counts, where) if self.spec.double_sampling else [(one_batch(losses, where), counts)]

    def _losses(self, given: Sequence[Any], named: Mapping[str, Tensor]) -> tuple[StepLosses, Batches | None]:
        """(the step's losses, its independent batches where the rule reads some)."""
        found = []
        for losses, counts in given:
            self._learn_tasks(losses)
            found.append(step_losses(losses, counts, self.tasks, named))
        return independent(found) if self.spec.double_sampling else (found[0], None)

    def _learn_tasks(self, losses: Mapping[str, Tensor]) -> None:
        if self.tasks is None and not distribution.active():
            self._new_rule(list(losses)), self._new_applied(list(losses))  # as in the constructor
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
        if not self.priority:
            return torch.ones(len(tasks), dtype=torch.float64)
        every = self.tasks or tasks
        mean = sum(self.priority.get(task, 1.0) for task in every) / len(every)
        return torch.tensor([self.priority.get(task, 1.0) / mean for task in tasks], dtype=torch.float64)


def balancer(rule: str | RuleSpec, **options: Any) -> Balancer:
    """A balancer by the rule's name; see `Balancer` for the options."""
    return Balancer(rule, **options)


def _scaled(losses: Mapping[str, Tensor], scaler: torch.amp.GradScaler | None) -> dict[str, Tensor]:
    return dict(losses) if scaler is None else {task: scaler.scale(loss) for task, loss in losses.items()}
