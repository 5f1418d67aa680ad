"""A stage's attachments: the gradients of their terms, and the optimisers of those that train themselves."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from polytask.balancing import Balancer, distribution
from polytask.balancing.accumulation import own
from polytask.balancing.step_losses import step_losses
from polytask.core.errors import Inconsistent, MissingInput
from polytask.sharing import ATTACHMENTS, Attachment, AttachmentOptions, Branches, MultiTaskModel
from polytask.sharing.attachments.contract import require_shared
from polytask.training.devices import Devices


class Attached:
    """The attachments that a stage names.

    Args:
        options: the stage's.
        model: those that belong to it are in `model.attachments`.
        tasks: of the stage.
        seed: of the run.

    Attributes:
        values: of the last step's terms, by kind.
    """

    def __init__(
        self, options: Sequence[AttachmentOptions], model: MultiTaskModel, tasks: Sequence[str], seed: int
    ) -> None:
        self._model, self._tasks = model, list(tasks)
        self._with_term: dict[str, Attachment] = {}
        self._slots = [module for module in model.modules() if isinstance(module, Branches)]
        self._calibration: Attachment | None = None
        self._optimizers: dict[str, torch.optim.Optimizer] = {}
        self.values: dict[str, float] = {}
        for each in options:
            kind = ATTACHMENTS.find(each.kind)
            require_shared(each.kind, model.sharing)
            if kind.transforms:
                found: Any = model.attachments[each.kind]
            else:
                found = kind(tasks, model.sharing.representation_width, each, seed)
            if kind.calibrates_branches:
                self._calibration = found
            if kind.has_term:
                found.total = _total
                self._with_term[each.kind] = found
            if kind.trains_itself:
                found.requires_grad_(True)
                self._optimizers[each.kind] = found.optimizer()
        for slot in self._slots:  # also where an earlier stage had named one and this one does not
            slot.calibration = self._calibration

    @property
    def with_term(self) -> list[str]:
        """Kinds of those that compare the tasks' gradients at one representation."""
        return list(self._with_term)

    def check(self, stage: str, devices: Devices, balancer: Balancer, accumulate: int) -> None:
        """An error where what is done would not be the method; `accumulate` is how many parts a step has."""
        for kind, attachment in self._with_term.items():
            where = f"stage {stage!r}, attachment {kind!r}"
            if not attachment.spreads:
                _require_one_process(where, devices)
            if balancer.batches * accumulate > 1:
                parts = f"of which a step has {balancer.batches * accumulate}"
                raise Inconsistent(f"{where}: its term compares the rows of a whole batch, {parts}")
            if devices.scaler is not None:
                raise Inconsistent(f"{where}: its term is not scaled as precision fp16 needs; use bf16 or float32")
        if self._calibration is not None:
            where = f"stage {stage!r}, attachment {self._calibration.options.kind!r}"
            _require_one_process(where, devices)
            if not self._slots:
                raise MissingInput(
                    f"{where}: the encoder has no modality branches, whose outputs pass through a module "
                    "polytask.sharing.Branches before they are fused"
                )
            if accumulate > 1:
                raise Inconsistent(f"{where}: it needs one pass of a whole batch, of which a step has {accumulate}")
            if balancer.engine.reads != "representation" and not balancer.spec.weighs_losses:
                raise Inconsistent(
                    f"{where}: it calibrates what the tasks' combined gradient passes on, and engine "
                    f"{balancer.engine_name!r} takes a pass a task; use engine 'representation' or a rule on losses"
                )

    @property
    def reads_representation(self) -> bool:
        return bool(self._with_term)

    def gradients(
        self,
        losses: Mapping[str, Tensor],
        counts: Mapping[str, float],
        representation: Sequence[Tensor],
        parameters: Mapping[str, Tensor],
    ) -> list[tuple[Tensor, Tensor]]:
        """(parameter, what the terms add to its gradient), over all processes; the losses' graph stays usable.

        Nothing where a loss is not finite: the balancer has the words for that.
        """
        found: list[tuple[Tensor, Tensor]] = []
        self.values = {}
        part = self._part(losses, counts, representation) if self._with_term else None
        if part is None:
            return found
        for kind, attachment in self._with_term.items():
            term = attachment.term(*part)
            value = _total(term.detach().clone())
            attachment.require_finite(value)
            self.values[kind] = value.item()
            moved = list(attachment.parameters()) if attachment.trains_itself else list(parameters.values())
            reached = [parameter for parameter in moved if parameter.requires_grad]
            grads = torch.autograd.grad(term, reached, retain_graph=True, allow_unused=True)
            found += [(each, _total(own(grad))) for each, grad in zip(reached, grads, strict=True) if grad is not None]
        return found

    def _part(
        self, losses: Mapping[str, Tensor], counts: Mapping[str, float], representation: Sequence[Tensor]
    ) -> tuple[Mapping[str, Tensor], Tensor] | None:
        """(the present tasks' losses, what they were computed from) of this process's rows, which may be none."""
        found = step_losses(losses, counts, self._tasks, dict(self._model.named_parameters()))
        if not found.tasks or not bool(found.values.isfinite().all()):
            return None
        if representation:
            (shared,) = representation
            return found.local, shared
        device = next(self._model.parameters()).device
        nothing = torch.zeros(0, self._model.sharing.representation_width, device=device, requires_grad=True)
        return {task: nothing.sum() for task in found.tasks}, nothing

    def step(self, step: int, factor: float) -> None:
        """One step of the attachments that train themselves; `factor` is the stage's schedule."""
        for kind, optimizer in self._optimizers.items():
            for group in optimizer.param_groups:
                group["lr"] = self._with_term[kind].learning_rate(step) * factor
            optimizer.step()
            optimizer.zero_grad()

    def state_dict(self) -> dict[str, Any]:
        return {kind: optimizer.state_dict() for kind, optimizer in self._optimizers.items()}

    def load_state_dict(self, values: Mapping[str, Any]) -> None:
        for kind, optimizer in self._optimizers.items():
            optimizer.load_state_dict(values[kind])


def _total(tensor: Tensor) -> Tensor:
    """Summed over processes, in place."""
    if distribution.active():
        distribution.sum_in_place([tensor])
    return tensor


def _require_one_process(where: str, devices: Devices) -> None:
    if devices.world > 1:
        raise Inconsistent(
            f"{where}: it compares the rows of a whole batch, which {devices.world} processes share out; train on one"
        )
