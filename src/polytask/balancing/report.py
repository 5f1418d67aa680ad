"""What one balanced backward pass did."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from polytask.balancing.engine import Combined, Step
from polytask.core import geometry


@dataclass(frozen=True)
class BackwardReport:
    """Weights, geometry and route of one step.

    Attributes:
        tasks: the tasks present, in order; rows of everything below.
        loss_values: float64 [T], over all processes.
        weights_by_group: group -> float64 [T]; one group "all" unless `groups` asks for more; empty for elementwise
            rules.
        gram: float64 [T, T] over the shared parameters, or None where the rule did not need it.
        route: module or parameter group -> how its part of G was obtained.
        shared: names of the parameters that two or more tasks reach.
        skipped: True if gradients overflowed under a GradScaler, which will skip the step.
        measured: what else the rule measured of each task, such as "sharpness" -> float64 [T].
    """

    tasks: list[str]
    loss_values: Tensor
    weights_by_group: dict[str, Tensor]
    gram: Tensor | None = None
    route: dict[str, str] = field(default_factory=dict)
    shared: list[str] = field(default_factory=list)
    skipped: bool = False
    measured: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, step: Step, found: Combined) -> "BackwardReport":
        """Of a step, by what an engine has made of it."""
        return cls(
            step.tasks,
            step.values,
            found.weights,
            gram=found.gram,
            route=found.route,
            shared=found.shared,
            skipped=found.skipped,
            measured=found.measured,
        )

    @property
    def losses(self) -> dict[str, float]:
        return dict(zip(self.tasks, self.loss_values.tolist(), strict=True))

    @property
    def weights(self) -> dict[str, float]:
        """Task -> weight; the mean over groups when there are several."""
        if not self.weights_by_group:
            return {}
        mean = torch.stack(list(self.weights_by_group.values())).mean(0)
        return dict(zip(self.tasks, mean.tolist(), strict=True))

    @property
    def cosines(self) -> Tensor | None:
        """Cosines between the tasks' gradients on the shared parameters, [T, T]; NaN beside a zero gradient."""
        return None if self.gram is None else geometry.cosines(self.gram)

    @property
    def conflict_rate(self) -> float | None:
        """Share of task pairs whose gradients conflict."""
        return None if self.gram is None else geometry.conflict_rate(self.gram)
