"""Independent batches in one step, for rules that read inner products between the gradients of two of them.

X_a X_b^T of two batches is an unbiased estimate of the inner products of the expected gradients; a batch's own Gram
matrix is not, since it squares its noise. The combined gradient is that of the last batch: the third, which no weight
depends on, or the second where two are all there is. Private parameters are balanced by no rule and get the mean over
all batches.
"""

import torch
from torch import Tensor

from polytask.balancing.accumulation import as_sparse
from polytask.balancing.combining import collected, infinite_owners, infinite_tasks
from polytask.balancing.engine import Combined, Engine, Step
from polytask.balancing.exact import ExactEngine
from polytask.balancing.group_rules import GroupRules
from polytask.balancing.partition import partition


class DoubleSamplingEngine(Engine):
    """Every task's gradient in every batch, exactly. Peak memory: 2 T copies of the shared gradients."""

    def __init__(self) -> None:
        self._exact = ExactEngine(), ExactEngine()

    def combine(self, step: Step, rules: GroupRules) -> Combined:
        assert step.batches is not None
        part = partition(step.losses, step.tasks, step.named, step.shared)
        groups, bad = rules.grouped(part.shared), []
        private: dict[str, Tensor] = {}
        crossed: dict[str, Tensor] = {}
        found = []
        for number, losses in enumerate(step.batches.losses):
            now = self._exact[number % 2].over_processes(losses, step.tasks, part, step.number)
            bad += infinite_tasks(step, now.shared) + infinite_owners(step, part, now.private)
            private = now.private | {
                name: grad + now.private[name] if name in now.private else grad for name, grad in private.items()
            }
            if number == 1:  # the third batch's gradients take the place of the first's
                crossed = {group: found[0].shared.cross_gram(now.shared, names) for group, names in groups.items()}
            found.append(now)
        last, shares = found[-1], step.batches.shares
        overflow = step.overflows(bad)
        combined, weights = last.shared.combined(torch.ones(len(step.tasks))), {}
        if not overflow:
            combined = {}
            for group, names in groups.items():
                inputs = {"losses": step.values, "cross_gram": crossed[group] / _scale(step, shares[0], shares[1])}
                if rules.scale == "unit":
                    inputs["gram"] = last.shared.gram(names) / _scale(step, shares[-1], shares[-1])
                weights[group] = rules.weights(group, step.tasks, inputs, step.priority)
                combined |= last.shared.combined(weights[group] / shares[-1], names)
        sparse = {name: as_sparse(combined[name], rows) for name, rows in last.rows.items()}
        return collected(part, combined | sparse | private, weights, list(groups), None, overflow)


def _scale(step: Step, left: Tensor, right: Tensor) -> Tensor:
    """What the gradients' inner products carry of the batches' shares and of the GradScaler's factor."""
    return left[:, None] * right * (step.factor or 1.0) ** 2
