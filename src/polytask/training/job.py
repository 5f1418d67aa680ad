"""What a run is made of: data, tasks, a model to build, stages, and the recipe for the record."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from polytask.balancing import Balancer, balancer
from polytask.balancing.options import check_parts
from polytask.core.constraints import TaskName, TaskNames
from polytask.core.errors import BadValue, Inconsistent, UnknownName
from polytask.core.inputs import InputSchema
from polytask.core.rules import find
from polytask.sharing import ATTACHMENTS, AttachmentOptions, ModelSpec, MultiTaskModel, build_model
from polytask.sharing.model import sharing_tasks_of
from polytask.sharing.spec import DecoderSpec, check_stems
from polytask.sharing.stems import one_schema
from polytask.tasks.data import Data
from polytask.tasks.target import Target
from polytask.training.auxiliary import AuxiliaryHeads
from polytask.training.beside import WithBeside
from polytask.training.generated import OneTask, WithGenerated, generated_names, groups_of, start_of_generator
from polytask.training.spec import RunSpec, StageSpec


@dataclass(frozen=True)
class Job:
    """A run that can start.

    Attributes:
        data: the rows, of at least the tasks below.
        tasks: the tasks of this run, in order; others in the data are left alone (a single-task baseline trains one).
        model: how to build the model.
        stages: at least one.
        run: what holds for all of them.
        recipe: the resolved recipe, as plain data.
        encoder: a factory from Python instead of the recipe's encoder.
    """

    data: Data
    tasks: list[str]
    model: ModelSpec
    stages: list[StageSpec]
    run: RunSpec
    recipe: Mapping[str, Any] = field(default_factory=dict)
    encoder: Callable[..., nn.Module] | None = None

    def __post_init__(self) -> None:
        for task in self.tasks:
            if task not in self.data.targets:
                raise UnknownName("task", task, self.data.targets)
        if self.model.stems is not None:
            check_stems(self.model.stems, list(self.data.sources), list(self.data.targets))
        for stage in self.stages:
            for task in stage.tasks or ():
                if task not in self.tasks:
                    raise UnknownName("task", task, self.tasks, f"stage {stage.name!r}")
            stage_balancer(
                stage, self.targets_of(stage), 0
            )  # an option that a rule refuses is found before a run starts
        _ = self.attachments

    @property
    def targets(self) -> dict[str, Target]:
        return {task: self.data.targets[task] for task in self.tasks}

    def targets_of(self, stage: StageSpec) -> dict[str, Target]:
        """Those that a stage trains."""
        return {task: target for task, target in self.targets.items() if stage.tasks is None or task in stage.tasks}

    @property
    def attachments(self) -> list[AttachmentOptions]:
        """Those that belong to the model, of all stages; Inconsistent where two stages differ."""
        found: dict[str, AttachmentOptions] = {}
        for stage in self.stages:
            for each in stage.attachments:
                if ATTACHMENTS.find(each.kind).transforms and found.setdefault(each.kind, each) != each:
                    raise Inconsistent(
                        f"stage {stage.name!r}: attachment {each.kind!r} is part of the model, and an earlier stage "
                        f"gives it other options: {found[each.kind]} there and {each} here"
                    )
        return list(found.values())

    @property
    def schemas(self) -> dict[str, InputSchema]:
        """The inputs of each source in use."""
        return {
            name: source.schema for name, source in self.data.sources.items() if set(source.tasks) & set(self.tasks)
        }

    @property
    def sources(self) -> dict[str, list[str]]:
        """task -> the sources that it is trained on."""
        sources = self.data.sources.items()
        return {task: [name for name, source in sources if task in source.tasks] for task in self.tasks}

    def build(self) -> MultiTaskModel:
        return self._built(self.model, self.targets)

    def build_without(self, model: MultiTaskModel, tasks: Sequence[str]) -> MultiTaskModel:
        """A model like this one without these tasks and what is theirs alone; its numbers mean nothing."""
        kept = {task: target for task, target in self.targets.items() if task not in tasks}
        return self._built(model.spec or self.model, kept, model.read_by(kept))

    def _built(
        self, spec: ModelSpec, targets: Mapping[str, Target], sharing_tasks: Sequence[str] | None = None
    ) -> MultiTaskModel:
        outputs = {task: target.schema for task, target in targets.items()}
        heads = {task: target.task.head.hidden_sizes for task, target in targets.items()}
        return build_model(
            spec,
            self.schemas,
            outputs,
            heads,
            seed=self.run.seed,
            encoder=self.encoder,
            attachments=self.attachments,
            sources={task: self.sources[task] for task in targets},
            products=products_of(targets),
            sharing_tasks=sharing_tasks,
        )

    def with_chosen_engine(self, index: int, chosen: str) -> "Job":
        """With what the timing of a stage's engine has found; the recipe says so too."""
        stage = self.stages[index]
        engine = stage.rule.engine.model_copy(update={"chosen": chosen})
        changed = stage.model_copy(update={"rule": stage.rule.model_copy(update={"engine": engine})})
        stages = [*self.stages[:index], changed, *self.stages[index + 1 :]]
        dumped = [each.model_dump(mode="json") for each in stages]
        return replace(self, stages=stages, recipe={**self.recipe, "stages": dumped} if self.recipe else {})

    def with_generated(self, model: MultiTaskModel, stage: StageSpec) -> WithGenerated | None:
        """The model beside what makes a stage's labels, a network of the model's own kind."""
        if stage.rule.generated is None:
            return None
        task = stage.rule.generated.task
        groups = groups_of(self.targets[task], stage.rule.generated.classes)
        schema = one_schema({name: self.schemas[name] for name in self.sources[task]})
        spec = ModelSpec(encoder=self.model.encoder, sharing={"kind": "hard"})
        seed = start_of_generator(self.run.seed)
        made = build_model(spec, schema, {task: sum(groups)}, seed=seed, encoder=self.encoder)
        return WithGenerated(model, OneTask(made, task), task, groups, seed)

    def with_beside(self, model: MultiTaskModel, stage: StageSpec) -> WithBeside | None:
        """The model with what helps a stage's tasks in training only: heads on its inner maps, where it has places for
        them, or what its architecture has of its own."""
        own = model.sharing.beside(self.run.seed)
        if own is not None:
            return WithBeside(model, own)
        weight = (self.model.decoder or DecoderSpec()).auxiliary
        if weight == 0 or not model.sharing.auxiliary:
            return None
        if stage.rule.generated is not None:
            where = f"stage {stage.name!r}: generated labels"
            raise Inconsistent(f"{where} do not go with auxiliary heads; say model.decoder.auxiliary: 0")
        outputs = {task: target.outputs for task, target in self.targets_of(stage).items()}
        return WithBeside(model, AuxiliaryHeads(model.sharing.auxiliary, outputs, weight, self.run.seed))

    def config(self, model: MultiTaskModel, without: Sequence[str] = ()) -> dict[str, Any]:
        """config.json: enough to build the model again, `without` some tasks; `encoder: null` says that it came from a
        Python factory."""
        targets = {task: target for task, target in self.targets.items() if task not in without}
        spec = model.spec or self.model
        return {
            "version": 1,
            "model": {**spec.model_dump(mode="json"), "init_from": None},
            "python_encoder": self.encoder is not None,
            "attachments": [each.model_dump(mode="json") for each in self.attachments],
            "schemas": {name: schema.to_json() for name, schema in self.schemas.items()},
            "sources": {task: _one_or_all(self.sources[task]) for task in targets},
            "outputs": {task: target.schema.to_json() for task, target in targets.items()},
            "products": {task: list(factors) for task, factors in products_of(targets).items()},
            "heads": {task: list(target.task.head.hidden_sizes) for task, target in targets.items()},
            "sharing_tasks": sharing_tasks_of(model, targets),
        }


def _one_or_all(names: list[str]) -> str | list[str]:
    return names[0] if len(names) == 1 else names


def products_of(targets: Mapping[str, Target]) -> dict[str, tuple[str, ...]]:
    """task -> its factors; a task that is trained without them, as a baseline is, has a head of its own."""
    of = {task: target.task.product_of for task, target in targets.items()}
    return {task: factors for task, factors in of.items() if factors and set(factors) <= set(targets)}


def stage_balancer(stage: StageSpec, targets: Mapping[str, Target], seed: int) -> Balancer:
    """What a stage's rule, its options and its tasks' priorities make; tasks that a rule may name are those of role
    target unless it names others."""
    priority = {task: target.task.priority for task, target in targets.items()}
    names = [*targets, *generated_names(stage, targets)]
    made = balancer(
        stage.rule.kind,
        tasks=names,
        engine=stage.rule.engine.options(),
        groups=stage.rule.groups,
        scale=stage.rule.scale,
        priority=priority if any(value != 1.0 for value in priority.values()) else None,
        gram=stage.accumulate.gram,
        clusters=stage.rule.clusters_of({task: target.task.index for task, target in targets.items()}),
        seed=seed,
        **{**_by_role(stage, targets), **stage.rule.parameters},
    )
    if stage.accumulate.parts > 1:
        check_parts(made.spec, made.engine_name, made.gram, again=made.gram != "kept")
    if stage.batch_size < stage.accumulate.parts:
        raise BadValue(
            "accumulate", stage.accumulate.parts, f"at most batch_size, {stage.batch_size}", f"stage {stage.name!r}"
        )
    if stage.batch_size < made.batches:
        least = f"{made.batches} or more: rule {stage.rule.kind!r} splits a step's rows into independent batches"
        raise BadValue("batch_size", stage.batch_size, least, f"stage {stage.name!r}")
    return made


def _by_role(stage: StageSpec, targets: Mapping[str, Target]) -> dict[str, Any]:
    """The tasks with the role target, for parameters that name tasks; for one that names a task if that is one."""
    main = [task for task, target in targets.items() if target.task.role == "target"]
    chosen: dict[str, Any] = {}
    for name, about in find(stage.rule.kind).parameters.items():
        if isinstance(about.constraint, TaskNames) and main:
            chosen[name] = main
        if isinstance(about.constraint, TaskName) and len(main) == 1:
            chosen[name] = main[0]
    return chosen
