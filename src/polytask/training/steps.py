"""One training step: pieces of a batch -> losses -> balanced gradients -> the optimiser."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from polytask.balancing import BackwardReport, Balancer
from polytask.balancing.accumulation import accumulate
from polytask.core.noise import Noise
from polytask.tasks.examples import Batch
from polytask.tasks.target import Target
from polytask.training.attached import Attached
from polytask.training.devices import Devices
from polytask.training.losses import Forward, label_counts, parts, task_losses
from polytask.training.regularizer import Regularizer


class Steps:
    """Takes the steps of a stage; a step changes the model, or nothing when no row of any process has a label.

    Args:
        model: changed in place.
        targets: of the stage.
        balancer, attached, optimizer, devices: of the stage; the attachments' own parameters are left with their
            gradient, for `attached.step`.
        regularizer: of the stage; its gradient joins the tasks' before the clipping.
        clip: the largest norm of the gradient.
        number_of_parts: of the rows, which are computed one after the other.
        fraction: of the rows, for engine "subset".
    """

    def __init__(
        self,
        model: nn.Module,
        targets: Mapping[str, Target],
        balancer: Balancer,
        attached: Attached,
        optimizer: torch.optim.Optimizer,
        devices: Devices,
        *,
        regularizer: Regularizer | None = None,
        clip: float | None = None,
        number_of_parts: int = 1,
        fraction: float = 0.25,
    ) -> None:
        self._model, self._targets, self._devices = model, targets, devices
        self._balancer, self._attached, self._optimizer = balancer, attached, optimizer
        self._parameters = dict(model.named_parameters())
        self._regularizer = regularizer
        self._clip, self._number_of_parts, self._fraction = clip, number_of_parts, fraction

    def take(self, pieces: Sequence[Batch], *, seed: int, validation: Sequence[Batch] = ()) -> BackwardReport | None:
        """One step; None, and no change, when no row of any process has a label.

        Args:
            seed: of torch's generator, which dropout draws from. It is seeded anew in each step (the run gives the
                generator back as it found it), so a resumed run draws the same.
            validation: the batch for rules that need one; the same rows in every process.
        """
        again = Forward(self._model, pieces, validation, self._targets, self._devices, seed)
        computed_again = self._number_of_parts > 1 and self._balancer.gram != "kept"
        report = self._computed_again(again) if computed_again else self._balanced(again)
        if report is None or not report.tasks:
            return None
        self._move()
        if self._balancer.looks_again:
            with torch.no_grad():
                after = again.losses()
            self._balancer.after_step(after.losses, counts=after.counts)
        return report

    def _balanced(self, step: Forward) -> BackwardReport | None:
        """Writes the gradients of a step whose rows are computed once."""
        balancer, attached, devices = self._balancer, self._attached, self._devices
        devices.seed(step.seed)
        *earlier, last = parts(step.pieces, self._number_of_parts)
        any_earlier = self._accumulated(earlier, step.seed)
        needs_representation = balancer.engine.reads == "representation"
        wanted = needs_representation or attached.reads_representation
        found = [
            task_losses(self._model, part, self._targets, devices, representation=wanted)
            for part in parts(last, balancer.batches)
        ]
        several, first = len(found) > 1, found[0]
        here = any(all(task in each.losses for each in found) for task in first.losses)
        if devices.world == 1 and not here and not any_earlier:
            return None
        # uses no graph up
        terms = attached.gradients(first.losses, first.counts, first.representation, self._parameters)
        report = balancer.backward(
            [each.losses for each in found] if several else first.losses,
            self._parameters,
            representation=first.representation if needs_representation else None,
            subset=step.part(self._fraction) if balancer.engine.reads == "subset" else None,
            forward=step,
            counts=[each.counts for each in found] if several else first.counts,
            scaler=devices.scaler,
        )
        for parameter, grad in terms if report.tasks else ():
            accumulate(parameter, grad)
        return report

    def _accumulated(self, earlier: Sequence[Sequence[Batch]], seed: int) -> bool:
        """Whether one of the parts before the last has a label; the balancer then knows of it."""
        any_label = False
        for place, part in enumerate(earlier):
            self._devices.seed(_seed_of_part(seed, place))
            found = task_losses(self._model, part, self._targets, self._devices)
            if found.losses:
                self._balancer.accumulate(
                    found.losses, self._parameters, counts=found.counts, scaler=self._devices.scaler
                )
                any_label = True
        if earlier:
            self._devices.seed(_seed_of_part(seed, len(earlier)))
        return any_label

    def _computed_again(self, step: Forward) -> BackwardReport | None:
        """Writes the gradients of a step whose parts the balancer has computed several times."""
        every = parts(step.pieces, self._number_of_parts)
        counts = [label_counts(part, self._targets) for part in every]
        if self._devices.world == 1 and not any(any(count.values()) for count in counts):
            return None
        again = [step.of_part(part, _seed_of_part(step.seed, place)) for place, part in enumerate(every)]
        seen = [False] * len(every)

        def forward(parameters: Mapping[str, Tensor] | None = None, batch: int | str = 0) -> Mapping[str, Tensor]:
            """The first pass of a part is the one that running statistics count."""
            if not isinstance(batch, int):
                return step(parameters, batch)
            if seen[batch]:
                return again[batch](parameters)
            seen[batch] = True
            self._devices.seed(again[batch].seed)
            return task_losses(self._model, every[batch], self._targets, self._devices).losses

        number, scaler = self._number_of_parts, self._devices.scaler
        return self._balancer.backward_parts(forward, self._parameters, parts=number, counts=counts, scaler=scaler)

    def _move(self) -> None:
        """The optimiser's step."""
        optimizer, scaler = self._optimizer, self._devices.scaler
        if scaler is not None and (self._clip is not None or self._regularizer is not None):
            scaler.unscale_(optimizer)
        if self._regularizer is not None:
            self._regularizer.add_gradients()
        if self._clip is not None:
            every = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            nn.utils.clip_grad_norm_(every, self._clip)
        if scaler is None:
            optimizer.step()
        else:
            scaler.step(optimizer)
            scaler.update()
        optimizer.zero_grad()


def _seed_of_part(seed: int, place: int) -> int:
    """Of the dropout in a part of a step; the first has the step's own."""
    return Noise(seed, "part", place).torch_seed() if place else seed
