"""A rule as the balancer applies it: one for each group of parameters, with priorities and the scale asked for."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from polytask.balancing.scale import rescaled
from polytask.core.rules import RuleSpec
from polytask.core.state import Rule
from polytask.core.task_vectors import TaskVectors
from polytask.core.tracking import times


class GroupRules:
    """group -> rule; a group's rule is made when its first gradients come.

    Args:
        spec: the rule.
        new_rule: makes one for a group.
        groups: "all", "layer" or "tensor": what is a group of parameters.
        scale: published | sum | mean | unit.
        prioritised: whether any task has a priority of its own.
    """

    def __init__(
        self, spec: RuleSpec, new_rule: Callable[[], Rule], *, groups: str, scale: str, prioritised: bool
    ) -> None:
        self.spec, self.groups, self.scale, self.prioritised = spec, groups, scale, prioritised
        self._new_rule = new_rule
        self._rules: dict[str, Rule] = {}

    def __iter__(self) -> Any:
        return iter(self._rules.values())

    def rule(self, group: str) -> Rule:
        if group not in self._rules:
            self._rules[group] = self._new_rule()
        return self._rules[group]

    def grouped(self, names: Sequence[str]) -> dict[str, list[str]]:
        """group -> its parameters."""
        if self.groups == "all":
            return {"all": list(names)}
        groups: dict[str, list[str]] = {}
        for name in names:
            groups.setdefault(name if self.groups == "tensor" else name.rpartition(".")[0] or name, []).append(name)
        return groups

    def weights(self, group: str, tasks: list[str], inputs: dict[str, Tensor], priority: Tensor) -> Tensor:
        """The rule's weights for a group, with priority and scale applied, float64 [T]."""
        multiplied = priority if self.prioritised and not self.spec.prefers else None
        seen = inputs if multiplied is None else _multiplied(inputs, multiplied)
        weights = self.rule(group)(tasks, *(seen[need] for need in self.spec.needs), priority=priority)
        weights = weights if multiplied is None else weights * multiplied
        square = float(weights @ inputs["gram"] @ weights) if self.scale == "unit" and "gram" in inputs else 0.0
        factor = rescaled(self.spec.scale, self.scale, len(tasks), square)
        return weights if factor == 1.0 else weights * factor

    def tracked(self, groups: Mapping[str, Sequence[str]], vectors: TaskVectors, values: Tensor) -> TaskVectors:
        """What the rules see in place of the vectors; their trackers remember the vectors."""
        assert self.spec.tracker is not None
        seen = {}
        for group, names in groups.items():
            rule = self.rule(group)
            norms = vectors.norms(names) if "norms" in self.spec.tracker.keywords else None
            for name in names:
                seen[name] = rule.tracked(vectors.tasks, name, vectors.stacks[name], losses=values, norms=norms)
        return TaskVectors(vectors.tasks, seen)

    def combined(
        self,
        groups: Mapping[str, Sequence[str]],
        grams: Mapping[str, Tensor],
        vectors: TaskVectors,
        values: Tensor,
        priority: Tensor,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """(name -> combined vector, group -> weights) from each group's vectors, its Gram matrix and the losses."""
        combined: dict[str, Tensor] = {}
        weights: dict[str, Tensor] = {}
        for group, names in groups.items():
            if self.spec.returns == "weights":
                inputs = {"losses": values, "gram": grams[group]}
                weights[group] = self.weights(group, vectors.tasks, inputs, priority)
                combined |= vectors.combined(weights[group], names)
            else:
                combined |= self._elementwise(group, names, vectors, priority)
        return combined, weights

    def _elementwise(
        self, group: str, names: Sequence[str], vectors: TaskVectors, priority: Tensor
    ) -> dict[str, Tensor]:
        rule, combined = self.rule(group), {}
        for name in names:
            stack = times(priority, vectors.stacks[name]) if self.prioritised else vectors.stacks[name]
            combined[name] = rule(vectors.tasks, stack, keys=(name,))
        squared_norm = sum(combined[name].double().square().sum().item() for name in names)
        scale = rescaled(self.spec.scale, self.scale, len(vectors), squared_norm)
        return {name: grad * scale for name, grad in combined.items()} if scale != 1.0 else combined

    def states(self) -> dict[str, Any]:
        """What `restore` takes."""
        return {group: rule.moment for group, rule in self._rules.items()}

    def restore(self, states: Mapping[str, Any]) -> None:
        """As the rules were when `states` gave these."""
        self._rules = {group: rule for group, rule in self._rules.items() if group in states}
        for group, state in states.items():
            self._rules[group].restore(state)

    def state_dict(self) -> dict[str, Any]:
        return {group: rule.state_dict() for group, rule in self._rules.items()}

    def load_state_dict(self, values: Mapping[str, Any]) -> None:
        for group, saved in values.items():
            self.rule(group).load_state_dict(saved)


def _multiplied(inputs: Mapping[str, Tensor], priority: Tensor) -> dict[str, Tensor]:
    """What a rule reads of losses that are each multiplied by its task's priority."""
    seen = {**inputs, "losses": inputs["losses"] * priority}
    if "validation" in inputs:
        seen["validation"] = inputs["validation"] * priority
    for product in ("gram", "cross_gram"):
        if product in inputs:
            seen[product] = inputs[product] * priority[:, None] * priority
    return seen
