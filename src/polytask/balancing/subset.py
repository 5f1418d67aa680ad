"""The subset engine: G from the losses of a part of the rows, its weights applied to the batch in one backward pass.

The part has fewer rows than most layers' fan-in, so inner products by layer spare the tasks' weight gradients, whose
size does not shrink with the rows. Under `torch.distributed`, where processes hold different rows, the
exact engine takes the step.
"""

from dataclasses import replace

import torch

from polytask.balancing import distribution
from polytask.balancing.engine import Combined, Engine, Step, refuse_without_weights, summed_gram
from polytask.balancing.exact import ExactEngine
from polytask.balancing.graph import walked
from polytask.balancing.group_rules import GroupRules
from polytask.balancing.layerwise import measured
from polytask.balancing.partition import partition
from polytask.balancing.routes import LESS_WORK
from polytask.balancing.weighted import weighted_gradients
from polytask.core.errors import MissingInput
from polytask.core.rules import RuleSpec


class SubsetEngine(Engine):
    """One backward pass a task on the rows of `subset=`, and one of the batch."""

    reads = "subset"

    def __init__(self) -> None:
        self._exact = ExactEngine()

    def check(self, spec: RuleSpec, groups: str, scale: str) -> None:
        refuse_without_weights("subset", spec, groups, scale)

    def combine(self, step: Step, rules: GroupRules) -> Combined:
        if distribution.active():
            result = self._exact.combine(step, rules)
            return replace(result, route=dict.fromkeys(result.route, "exact: processes hold different rows"))
        given = step.subset or {}
        if sorted(given) != sorted(step.tasks):
            lacking = next((task for task in step.tasks if task not in given), None)
            more = next((task for task in given if task not in step.tasks), None)
            what = f"lacks task {lacking!r}" if lacking is not None else f"has task {more!r}, which losses lacks"
            raise MissingInput(f"engine 'subset': subset= {what} at step {step.number}")
        part = replace(step, losses={task: given[task] for task in step.tasks})
        walk = walked(part.losses)
        reaching = partition(part.losses, part.tasks, part.named, part.shared, walk.leaves).shared_only()
        seen = measured(part, rules, self._exact, LESS_WORK, reaching, walk)
        gram = summed_gram(seen.grams)
        if step.overflows(step.infinite_tasks(gram)):  # infinities stay where the scaler looks for them
            ones = torch.ones(len(step.tasks), dtype=torch.float64)
            return replace(weighted_gradients(step, ones, "subset"), weights={}, gram=gram, skipped=True)
        weights = rules.weights("all", step.tasks, {"losses": step.values, "gram": gram}, step.priority)
        return replace(weighted_gradients(step, weights, "subset"), gram=gram)
