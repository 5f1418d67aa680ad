"""One stage of a run: its rows, its parameters, its rule and its optimiser."""

from collections.abc import Iterable
from typing import Any

from torch import nn

from polytask.balancing import BackwardReport, balancer
from polytask.core.errors import UnknownName
from polytask.core.noise import Noise
from polytask.tasks.examples import Batch
from polytask.tasks.mixture import Mixture
from polytask.training.devices import Devices
from polytask.training.job import Job
from polytask.training.optimizers import build_optimizer, factor, set_learning_rate
from polytask.training.spec import StageSpec
from polytask.training.steps import train_step


class Stage:
    """A stage that is running.

    Args:
        job: the run.
        spec: this stage.
        index: its place among the stages, part of the noise's name.
        model: changed in place.
        splits: source -> training rows (with cached features where the encoder offers them).
        devices: where it computes.
    """

    def __init__(
        self, job: Job, spec: StageSpec, index: int, model: nn.Module, splits: dict[str, Any], devices: Devices
    ) -> None:
        self.spec, self.model, self.devices = spec, model, devices
        self.targets = {
            task: target for task, target in job.targets.items() if spec.tasks is None or task in spec.tasks
        }
        used = {name: split for name, split in splits.items() if set(job.data.sources[name].tasks) & set(self.targets)}
        self.mixture = Mixture(used, spec.mixture, spec.batch_size, job.run.seed)
        self.steps = spec.steps or (spec.epochs or 1) * self.mixture.steps_per_epoch
        priority = {task: target.task.priority for task, target in self.targets.items()}
        rule = spec.rule
        self.balancer = balancer(
            rule.kind,
            tasks=list(self.targets),
            engine=rule.engine,
            groups=rule.groups,
            scale=rule.scale,
            priority=priority if len(set(priority.values())) > 1 else None,
            seed=job.run.seed,
            **rule.parameters,
        )
        self.optimizer = build_optimizer(spec.optimizer, trainable(model, spec.trainable, spec.name))
        self._noise = Noise(job.run.seed, "step", index, devices.rank)

    def batches(self, step: int) -> Iterable[list[Batch]]:
        """The steps that are left of the epoch that `step` is in."""
        epoch, start = divmod(step, self.mixture.steps_per_epoch)
        return self.mixture.batches(epoch, start, self.devices.rank, self.devices.world)

    def ends_epoch(self, step: int) -> bool:
        """Whether an epoch ends before `step`."""
        return step % self.mixture.steps_per_epoch == 0

    def train(self, pieces: list[Batch], step: int) -> BackwardReport | None:
        set_learning_rate(self.optimizer, self.learning_rate(step))
        return train_step(
            self.model,
            pieces,
            self.targets,
            self.balancer,
            self.optimizer,
            self.devices,
            noise=self._noise.child(step),
            clip=self.spec.clip,
        )

    def learning_rate(self, step: int) -> float:
        return self.spec.optimizer.lr * factor(self.spec.schedule, step, self.steps)

    def state_dict(self) -> dict[str, Any]:
        scaler = self.devices.scaler.state_dict() if self.devices.scaler is not None else None
        return {"optimizer": self.optimizer.state_dict(), "balancer": self.balancer.state_dict(), "scaler": scaler}

    def load_state_dict(self, values: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(values["optimizer"])
        self.balancer.load_state_dict(values["balancer"])
        if self.devices.scaler is not None and values["scaler"] is not None:
            self.devices.scaler.load_state_dict(values["scaler"])


def trainable(model: nn.Module, prefixes: tuple[str, ...] | None, stage: str) -> list[nn.Parameter]:
    """The parameters that a stage changes; gradients of the others are switched off.

    What the model itself froze when it was built stays frozen.
    """
    chosen = []
    unused = dict.fromkeys(prefixes or ())
    for name, parameter in model.named_parameters():
        if not hasattr(parameter, "frozen_by_model"):
            parameter.frozen_by_model = not parameter.requires_grad  # ty: ignore[invalid-assignment]
        matching = [prefix for prefix in prefixes or () if name == prefix or name.startswith(f"{prefix}.")]
        for prefix in matching:
            unused.pop(prefix, None)
        wanted = (prefixes is None or bool(matching)) and not parameter.frozen_by_model  # ty: ignore[missing-attribute]
        parameter.requires_grad_(wanted)
        if wanted:
            chosen.append(parameter)
    for prefix in unused:
        beginnings = [name for name, module in model.named_modules() if name and name.count(".") < 3]
        raise UnknownName("beginning of a parameter's name", prefix, beginnings, f"stage {stage!r}: trainable")
    return chosen


def training_rows(job: Job) -> dict[str, Any]:
    """source -> its training split, for the sources of the run's tasks, without labels of other tasks."""
    rows: dict[str, Any] = {}
    for name, source in job.data.sources.items():
        if set(source.tasks) & set(job.tasks):
            rows[name] = source.splits["train"]
    return rows
