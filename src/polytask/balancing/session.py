"""What a procedure sees of a step: the losses again, with other parameters or on another batch, gradients, and rules.

A procedure is a rule `(session, [state], *, parameters) -> Combined [, state]`. It writes nothing: the balancer adds
its gradients to `.grad`. Sums over processes are taken here, so a procedure reads as on one.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from polytask.balancing import distribution
from polytask.balancing.accumulation import infinite, usable_graph
from polytask.balancing.engine import Step, summed_gram
from polytask.balancing.exact import dense, differentiated
from polytask.balancing.group_rules import GroupRules
from polytask.balancing.partition import Partition, outside, partition
from polytask.balancing.step_losses import StepLosses, step_losses
from polytask.core.errors import MissingInput, NotFinite
from polytask.core.task_vectors import TaskVectors

VALIDATION = "validation"


@runtime_checkable
class Forward(Protocol):
    """The losses as a function: `forward=` of `Balancer.backward`.

    It changes nothing: the same dropout as in the step's own forward pass, running statistics left alone.

    Args:
        parameters: name -> tensor in place of the model's own; those not named, and with None all, are the model's.
        batch: 0 is the step's batch, "validation" one of rows that are not trained on, which under torch.distributed is
            the same for every process.
    """

    def __call__(
        self, parameters: Mapping[str, Tensor] | None = None, batch: int | str = 0
    ) -> Mapping[str, Tensor]: ...


@dataclass(frozen=True)
class Session:
    """One step of a procedure.

    Attributes:
        step: its batch, its tasks, their losses with their graphs.
        forward: the losses as a function.
        every_task: those that may be present.
        counts: the labels behind the step's losses on this process.
        priority: tasks -> float64 [T]; multiplies their losses.
        inner: purpose -> the rule that the procedure applies for it, which keeps a state of its own.
    """

    step: Step
    forward: Forward
    every_task: Sequence[str]
    counts: Mapping[str, float] | None
    priority: Callable[[list[str]], Tensor]
    inner: Callable[[str], GroupRules]

    @property
    def tasks(self) -> list[str]:
        return self.step.tasks

    def partition(self) -> Partition:
        """Which task reaches which parameter; MissingInput for one that is not in the model."""
        step = self.step
        found = partition(step.losses, step.tasks, step.named, step.shared)
        others = outside(found.parameters.values(), step.named)
        if others:
            raise MissingInput(
                f"a procedure replaces parameters of the model, and one of shape {tuple(others[0].shape)} is not in it"
            )
        return found

    def losses(self, parameters: Mapping[str, Tensor] | None = None, batch: int | str = 0) -> StepLosses:
        """The losses elsewhere, over all processes; of the step's batch, those of the step's tasks."""
        given = self.forward(parameters, batch)
        counts = self.counts if batch == 0 else None
        found = step_losses(given, counts, self.every_task, self.step.named)
        found.refuse_infinite(self.step.number)
        if batch == 0 and found.tasks != self.tasks:
            gone = next(task for task in [*self.tasks, *found.tasks] if (task in self.tasks) != (task in found.tasks))
            raise MissingInput(f"forward= and losses differ: task {gone!r} is in one of them only")
        return found

    def gradient(self, loss: Tensor | None, parameters: Mapping[str, Tensor], what: str) -> dict[str, Tensor]:
        """name -> gradient of a loss over all processes, dense; of those that it does not depend on, zeros or nothing.

        Args:
            loss: this process's part; None if it has none. Its graph is kept.
            parameters: what to differentiate by.
            what: whose gradient it is, for messages.
        """
        with usable_graph(what, self.step.number):
            found = {} if loss is None else differentiated(loss, parameters, keep_graph=True)
        return self.summed(found, parameters, what)

    def summed(self, grads: Mapping[str, Tensor], parameters: Mapping[str, Tensor], what: str) -> dict[str, Tensor]:
        """This process's gradients over all processes, dense and without graphs; NotFinite if they are not."""
        if distribution.active():
            found = {name: dense(grads.get(name), parameter) for name, parameter in parameters.items()}
            distribution.sum_in_place([*found.values()])
        else:
            found = {name: (grad.to_dense() if grad.is_sparse else grad).detach() for name, grad in grads.items()}
        if infinite(found):
            raise NotFinite(f"the gradient of {what} is not finite at step {self.step.number}")
        return found

    def vectors(self, grads: Mapping[str, Mapping[str, Tensor]], part: Partition) -> TaskVectors:
        """The shared parameters' gradients of {task: {name: gradient}}."""
        rows = [grads[task] for task in self.tasks]
        stacks = {
            name: torch.stack([row.get(name, torch.zeros_like(part.parameters[name])) for row in rows])
            for name in part.shared
        }
        return TaskVectors(self.tasks, stacks)

    def weights(self, purpose: str) -> Float[Tensor, "T"]:
        """Those that an inner rule gives the step's losses."""
        inputs = {"losses": self.step.values, **self.step.more}
        return self.inner(purpose).weights("all", self.tasks, inputs, self.step.priority)

    def combined(
        self, purpose: str, vectors: TaskVectors
    ) -> tuple[dict[str, Tensor], dict[str, Float[Tensor, "T"]], Float[Tensor, "T T"]]:
        """(name -> combined vector, group -> weights, G) by an inner rule on gradients."""
        rules = self.inner(purpose)
        groups = rules.grouped(vectors.names)
        grams = {group: vectors.gram(names) for group, names in groups.items()}
        combined, weights = rules.combined(groups, grams, vectors, self.step.values, self.step.priority)
        return combined, weights, summed_gram(grams)
