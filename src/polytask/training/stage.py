"""One stage of a run: its rows, its parameters, its rule and its optimiser."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from polytask.balancing import BackwardReport
from polytask.core.errors import BadValue, Inconsistent, MissingInput
from polytask.core.noise import Noise
from polytask.tasks.examples import Batch, Examples
from polytask.tasks.mixture import Mixture
from polytask.training.attached import Attached
from polytask.training.devices import Devices
from polytask.training.generated import GeneratedLabels, Spread, generated_names, groups_of, with_labels
from polytask.training.job import Job, stage_balancer
from polytask.training.optimizers import build_optimizer, factor, set_learning_rate
from polytask.training.regularizer import regularizer
from polytask.training.steps import Steps
from polytask.training.trainable import choose


class Stage:
    """A stage that is running.

    Args:
        job: the run.
        index: which of its stages.
        model: changed in place.
        learnable: names of the parameters that the model itself leaves free to change.
        splits: source -> training rows (with cached features where the encoder offers them).
        validation: source -> validation rows, likewise; for rules that look at a batch of them.
        devices: where it computes.
    """

    def __init__(
        self,
        job: Job,
        index: int,
        model: Any,
        learnable: Sequence[str],
        splits: dict[str, Any],
        validation: dict[str, Any],
        devices: Devices,
    ) -> None:
        self.spec = spec = job.stages[index]
        self.model, self.devices = model, devices
        self.targets = job.targets_of(spec)
        used, held_out = (_of_stage(job, self.targets, rows) for rows in (splits, validation))
        _require_labels_as_large(model, used)
        noise = Noise(job.run.seed, "stage", index)
        self.mixture = Mixture(used, spec.mixture, spec.batch_size, noise.child("mixture").torch_seed())
        self.steps = spec.steps or (spec.epochs or 1) * self.mixture.steps_per_epoch
        self.balancer = stage_balancer(spec, self.targets, job.run.seed)
        self._validation = None
        if self.balancer.needs_validation:
            seed = noise.child("validation").torch_seed()
            self._validation = _Batches(Mixture(held_out, spec.mixture, spec.batch_size, seed))
        if self.balancer.engine.reads == "representation":
            where = f"stage {spec.name!r}, engine 'representation'"
            _require_one_representation(where, "engine 'exact'", model, list(used), list(self.targets))
        trainable = choose(model, learnable, spec.trainable, spec.name)
        self._regularizer = regularizer(spec, model, trainable, self.targets)
        chosen = list(trainable.values())
        self._generated = job.with_generated(model, spec)
        targets: dict[str, Any] = dict(self.targets)
        if self._generated is not None and spec.rule.generated is not None:
            if devices.world > 1:
                raise Inconsistent(f"stage {spec.name!r}: generated labels are spread over a batch of one process only")
            self._generated.generator.to(devices.device)
            self._generated.auxiliary.to(devices.device)
            groups = groups_of(self.targets[spec.rule.generated.task], spec.rule.generated.classes)
            names = generated_names(spec, self.targets)
            targets |= dict(zip(names, (GeneratedLabels(groups), Spread(groups)), strict=True))
            chosen = [*chosen, *self._generated.own_parameters()]
        self._beside = job.with_beside(model, spec)
        if self._beside is not None:
            self._beside.beside.to(devices.device)
            chosen = [*chosen, *self._beside.own_parameters()]
        self.trained = self._generated or self._beside or model
        self.optimizer = build_optimizer(spec.optimizer, chosen)
        self.attached = Attached(spec.attachments, model, list(self.targets), job.run.seed)
        for kind in self.attached.with_term:
            where = f"stage {spec.name!r}, attachment {kind!r}"
            _require_one_representation(where, "no such attachment", model, list(used), list(self.targets))
        self.attached.check(spec.name, devices, self.balancer, spec.accumulate.parts)
        self._steps = Steps(
            self.trained,
            targets,
            self.balancer,
            self.attached,
            self.optimizer,
            devices,
            regularizer=self._regularizer,
            clip=spec.clip,
            number_of_parts=spec.accumulate.parts,
            fraction=spec.rule.engine.fraction or 0.25,
        )
        self._seeds = _Seeds(noise.child("step", devices.rank))

    def begin(self) -> None:
        """What is measured at the weights that the stage begins with; a resumed stage has it in its state."""
        if self._regularizer is not None:
            self._regularizer.begin(self.model, self.mixture, self.targets, self.devices)

    def batches(self, step: int) -> Iterable[list[Batch]]:
        """The steps that are left of the epoch that `step` is in."""
        epoch, start = divmod(step, self.mixture.steps_per_epoch)
        return self.mixture.batches(epoch, start, self.devices.rank, self.devices.world)

    def rows(self, step: int) -> dict[str, list[int]]:
        """source -> the numbers of the rows of a step, over all processes."""
        epoch, start = divmod(step, self.mixture.steps_per_epoch)
        return {piece.source: piece.rows.tolist() for piece in next(self.mixture.batches(epoch, start))}

    def ends_epoch(self, step: int) -> bool:
        """Whether an epoch ends before `step`."""
        return step % self.mixture.steps_per_epoch == 0

    def epoch(self, step: int) -> int:
        """The epoch of the step before `step`, from 1."""
        return -(-step // self.mixture.steps_per_epoch)

    def train(self, pieces: list[Batch], step: int) -> BackwardReport | None:
        set_learning_rate(self.optimizer, self.learning_rate(step))
        if self.spec.rule.generated is not None:
            pieces = [with_labels(piece, self.spec.rule.generated.task) for piece in pieces]
        validation = () if self._validation is None else self._validation.at(step)
        report = self._steps.take(pieces, seed=self._seeds.at(step), validation=validation)
        if report is not None:
            self.attached.step(step, factor(self.spec.schedule, step, self.steps))
        return report

    @property
    def terms(self) -> dict[str, float]:
        """What the last step has added to the tasks' losses, by kind."""
        own = {} if self._regularizer is None else {"regularizer": self._regularizer.value}
        return {**self.attached.values, **own}

    @property
    def chosen_engine(self) -> str | None:
        """The engine that a timing has found fastest, where the stage asks for one and it has ended."""
        return self.balancer.engine.chosen

    def learning_rate(self, step: int) -> float:
        return self.spec.optimizer.lr * factor(self.spec.schedule, step, self.steps)

    def state_dict(self) -> dict[str, Any]:
        scaler = self.devices.scaler.state_dict() if self.devices.scaler is not None else None
        return {
            "optimizer": self.optimizer.state_dict(),
            "balancer": self.balancer.state_dict(),
            "attached": self.attached.state_dict(),
            "generated": {} if self._generated is None else self._generated.own_state(),
            "beside": {} if self._beside is None else self._beside.beside.state_dict(),
            "regularizer": {} if self._regularizer is None else self._regularizer.state_dict(),
            "scaler": scaler,
        }

    def load_state_dict(self, values: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(values["optimizer"])
        self.balancer.load_state_dict(values["balancer"])
        self.attached.load_state_dict(values["attached"])
        if self._generated is not None:
            self._generated.load_own_state(values["generated"])
        if self._beside is not None:
            self._beside.beside.load_state_dict(values["beside"])
        if self._regularizer is not None:
            self._regularizer.load_state_dict(values["regularizer"])
        if self.devices.scaler is not None and values["scaler"] is not None:
            self.devices.scaler.load_state_dict(values["scaler"])


class _Batches:
    """A mixture's batch for each step, whole in every process; asked for in order, rows are read once."""

    def __init__(self, mixture: Mixture) -> None:
        self._mixture, self._next = mixture, -1
        self._batches: Iterator[list[Batch]] = iter(())

    def at(self, step: int) -> list[Batch]:
        epoch, start = divmod(step, self._mixture.steps_per_epoch)
        if step != self._next or start == 0:
            self._batches = self._mixture.batches(epoch, start)
        self._next = step + 1
        return next(self._batches)


class _Seeds:
    """A seed for each step; drawn by the block, since making a generator costs more than its numbers."""

    BLOCK = 1024

    def __init__(self, noise: Noise) -> None:
        self._noise, self._block = noise, -1
        self._numbers = noise.raw(0)

    def at(self, step: int) -> int:
        block, place = divmod(step, self.BLOCK)
        if block != self._block:
            self._block, self._numbers = block, self._noise.raw(self.BLOCK, block * self.BLOCK)
        return int(self._numbers[place]) >> 1


def _require_one_representation(where: str, instead: str, model: Any, sources: list[str], tasks: list[str]) -> None:
    """An error unless all tasks of the stage read one representation of the same rows."""
    if not model.sharing.shares:
        raise MissingInput(f"{where}: the tasks share no representation; choose another `sharing` or {instead}")
    if model.stems is not None and model.stems.by == "task" and len(tasks) > 1:
        raise MissingInput(f"{where}: each task has a stem of its own; choose stems by source or {instead}")
    if len(sources) > 1:
        raise Inconsistent(
            f"{where}: tasks of sources {', '.join(sources)} have no rows in common, so at the representation no two "
            f"of them could conflict; use {instead}"
        )


def _require_labels_as_large(model: Any, splits: Mapping[str, Any]) -> None:
    """BadValue unless a task whose outputs are maps has labels of that height and width; streams are not looked at."""
    for split in splits.values():
        for task, labels in split.labels.items() if isinstance(split, Examples) else ():
            size = model.sharing.map_sizes.get(task, tuple(labels.shape[1:3]))
            if tuple(labels.shape[1:3]) != size:
                found = f"[{', '.join(map(str, labels.shape[1:]))}]"
                allowed = f"maps of {size[0]} x {size[1]}, as its decoder gives them; model.decoder.strides sets it"
                raise BadValue(f"task {task!r}: the shape of a label", found, allowed)


def _of_stage(job: Job, tasks: Collection[str], splits: Mapping[str, Any]) -> dict[str, Any]:
    """The rows of the sources that have one of these tasks."""
    sources = job.data.sources
    return {
        name: _with_labels_of(tasks, split)
        for name, split in splits.items()
        if any(task in tasks for task in sources[name].tasks)
    }


def _with_labels_of(tasks: Iterable[str], split: Any) -> Any:
    """The rows without the labels of other tasks, so that no batch copies them."""
    if not isinstance(split, Examples):
        return split
    kept = [task for task in tasks if task in split.labels]
    return replace(
        split,
        labels={task: split.labels[task] for task in kept},
        present={task: split.present[task] for task in kept},
        groups={task: split.groups[task] for task in kept if task in split.groups},
    )
