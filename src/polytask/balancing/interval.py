"""The interval engine: the rule sees gradients every few steps; in between its weights serve, one backward a step."""

from collections.abc import Mapping
from typing import Annotated, Any

from torch import Tensor

from polytask.balancing.engine import Combined, Engine, Step, refuse_without_weights
from polytask.balancing.exact import ExactEngine
from polytask.balancing.group_rules import GroupRules
from polytask.balancing.layerwise import combined_by_layer
from polytask.balancing.routes import LESS_WORK
from polytask.balancing.weighted import weighted_gradients
from polytask.core.constraints import Interval
from polytask.core.rules import RuleSpec


class IntervalEngine(Engine):
    """Weights belong to the set of tasks that were present: another set has weights of its own.

    A set without weights from the last `every` steps is given new ones, as engine "auto" does.

    Args:
        every: steps for which weights serve, the one that computed them included.
    """

    def __init__(self, *, every: Annotated[int, Interval(1)] = 10) -> None:
        self.every = every
        self._exact = ExactEngine()
        self._kept: dict[tuple[str, ...], tuple[int, Tensor]] = {}  # tasks -> (step, weights)

    def check(self, spec: RuleSpec, groups: str, scale: str) -> None:
        refuse_without_weights("interval", spec, groups, scale)

    def combine(self, step: Step, rules: GroupRules) -> Combined:
        present = tuple(step.tasks)
        computed, weights = self._kept.get(present, (step.number - self.every, None))
        if weights is not None and step.number < computed + self.every:
            return weighted_gradients(step, weights, f"kept from step {computed}")
        result = combined_by_layer(step, rules, self._exact, LESS_WORK)
        if not result.skipped:
            self._kept = {
                tasks: kept for tasks, kept in self._kept.items() if step.number < kept[0] + self.every
            }  # older ones will not be used again
            self._kept[present] = (step.number, result.weights["all"])
        return result

    def state_dict(self) -> dict[str, Any]:
        return {
            "kept": [
                {"tasks": list(tasks), "step": computed, "weights": weights.clone()}
                for tasks, (computed, weights) in self._kept.items()
            ]
        }

    def load_state_dict(self, values: Mapping[str, Any]) -> None:
        self._kept = {tuple(kept["tasks"]): (int(kept["step"]), kept["weights"].clone()) for kept in values["kept"]}
