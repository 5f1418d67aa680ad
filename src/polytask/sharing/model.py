"""A model of several tasks: a sharing architecture and a head a task."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from polytask.core.errors import BadValue, MissingInput, UnknownName
from polytask.core.inputs import InputSchema
from polytask.core.outputs import OutputSchema
from polytask.sharing.attachments.contract import Attachment, attached
from polytask.sharing.contract import Sharing
from polytask.sharing.encoders.blocks import as_they_are
from polytask.sharing.encoders.contract import Encoder, EncoderFactory, build, build_from_factory, require_gives
from polytask.sharing.encoders.mlp import MLP
from polytask.sharing.example_embeddings import check_readable
from polytask.sharing.gates import Passes
from polytask.sharing.initialise import Start, initialise_from
from polytask.sharing.layers import TaskModules, seeded
from polytask.sharing.names import SHARING
from polytask.sharing.products import check_products, product_log_odds, with_factors
from polytask.sharing.spec import AttachmentOptions, EncoderOptions, ModelSpec
from polytask.sharing.stems import Stems, one_schema
from polytask.sharing.tape import listen, listening, note_earlier, noted_stages


class MultiTaskModel(nn.Module):
    """Inputs -> sharing architecture -> {task: features} -> heads -> {task: outputs}.

    With attachments that transform the representation, what follows it reads each task's own version.

    Args:
        sharing: a sharing architecture: `forward(inputs, tasks) -> {task: [B, width]}`, `representation(inputs)`,
            `features(representation, tasks)`, `width`.
        heads: a head a task; their order is the order of the outputs.
        spec: what the model was built from, complete enough to build it again without any other file.
        attachments: those that the model computes with, in their order.
        stems: what reads the inputs first, where tasks do not read them alike.
        products: task without a head -> the tasks whose probabilities multiply to its own.
        tasks: all of them, in the order of the outputs, where products are among them.
        sharing_tasks: the architecture's, in its order, where some have no head: what others read of a task that left.
    """

    def __init__(
        self,
        sharing: Sharing,
        heads: TaskModules,
        spec: ModelSpec | None = None,
        attachments: Mapping[str, Attachment] | None = None,
        stems: Stems | None = None,
        products: Mapping[str, Sequence[str]] | None = None,
        tasks: Sequence[str] = (),
        sharing_tasks: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.products = dict(products or {})
        self._tasks, self.sharing_tasks = list(tasks), list(sharing_tasks or heads)
        self.stems = stems
        self.sharing = sharing
        self.heads = heads
        self.attachments = nn.ModuleDict(attachments)
        self.spec = spec
        self.start: Start | None = None  # what was taken from spec.init_from
        self._passes = [part for part in sharing.modules() if isinstance(part, Passes)]
        for task, head in heads.items():
            if getattr(head, "width", sharing.width) != sharing.width:
                raise BadValue(f"width of the head of {task!r}", head.width, f"{sharing.width}, as features")

    @property
    def tasks(self) -> list[str]:
        return list(self._tasks or self.heads)

    def read_by(self, tasks: Iterable[str]) -> list[str]:
        """Those of the architecture's tasks whose parts the outputs of these read, in its order."""
        of = {
            name
            for task in with_factors(list(tasks), self.products)
            for name in self.sharing.read_by(task, self.sharing_tasks)
        }
        return [task for task in self.sharing_tasks if task in of]

    def forward(
        self, inputs: Mapping[str, Tensor], tasks: Iterable[str] | None = None, stem: str | None = None
    ) -> dict[str, Tensor]:
        """{task: [B] or [B, outputs]} for the named tasks (None: all), computing nothing that only the others need.

        `stem` reads the inputs for all of them instead of their own, also one that these tasks never had in training.
        """
        named = self._named(tasks)
        if not named:
            return {}
        self._begin()
        needed = with_factors(named, self.products)
        if self.stems is None:
            return self._with_products(self._from_trunk(inputs, needed), named)
        found: dict[str, Tensor] = {}
        for served, read in self.stems.groups(inputs, needed, stem):
            found |= self._from_trunk(read, served)
        return self._with_products(found, named)

    def after_each(
        self, inputs: Mapping[str, Tensor], tasks: Iterable[str] | None = None, stem: str | None = None
    ) -> dict[str, Tensor]:
        """{task: [B, S] or [B, S, outputs]}: what its head makes of each of the S things that it may read, one after
        the other; the last is what `forward` gives. MissingInput where heads read one thing only."""
        named = self._named(tasks)
        with listen() as tape:
            last = self(inputs, with_factors(named, self.products), stem)
        for task in named:
            if not all(factor in tape.earlier for factor in self.products.get(task, (task,))):
                raise MissingInput(
                    f"task {task!r} is predicted once: only sharing 'sequential_state' predicts after each modality"
                )
        stages = zip(*tape.earlier.values(), strict=True)
        found = [self._with_products(dict(zip(tape.earlier, stage, strict=True)), named) for stage in stages]
        return {task: torch.stack([stage[task] for stage in [*found, last]], dim=1) for task in named}

    def _from_trunk(self, inputs: Mapping[str, Tensor], tasks: list[str]) -> dict[str, Tensor]:
        if self.attachments:
            return self._transformed(self.sharing.representation(inputs), tasks)
        return self._outputs(self.sharing(inputs, tasks))

    def representation(
        self, inputs: Mapping[str, Tensor], tasks: Iterable[str] | None = None, stem: str | None = None
    ) -> Float[Tensor, "B d"]:
        """What the named tasks (None: all) share; MissingInput where the architecture shares nothing, or where these
        tasks read the inputs through different stems and none is named."""
        needed = with_factors(self._named(tasks), self.products)
        read = inputs if self.stems is None else self.stems.one(inputs, needed, stem)
        return self.sharing.representation(read)

    def from_representation(
        self, representation: Float[Tensor, "B d"], tasks: Iterable[str] | None = None
    ) -> dict[str, Tensor]:
        """The outputs from what `representation` returned: `forward` in two steps."""
        named = self._named(tasks)
        self._begin()
        return self._with_products(self._transformed(representation, with_factors(named, self.products)), named)

    def _begin(self) -> None:
        """Counts a pass, for the gates that change with their number."""
        for passes in self._passes if self.training else ():
            passes.count.add_(1)

    def _transformed(self, representation: Float[Tensor, "B d"], tasks: list[str]) -> dict[str, Tensor]:
        """The heads' outputs, each task reading its own version of the representation."""
        if not self.attachments:
            return self._outputs(self.sharing.features(representation, tasks))
        by_task = dict.fromkeys(tasks, representation)
        attachments: list[Any] = list(self.attachments.values())
        for attachment in attachments:
            by_task = attachment.transform(by_task)
        return self._outputs({task: self.sharing.features(own, [task])[task] for task, own in by_task.items()})

    def _outputs(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        outputs = {task: self.heads[task](feature) for task, feature in features.items()}
        if listening():
            self.sharing.note_outputs(outputs)
            for task in outputs:
                if stages := noted_stages(task):
                    note_earlier(task, [self.heads[task](features) for features in stages])
        return outputs

    def _with_products(self, outputs: dict[str, Tensor], tasks: list[str]) -> dict[str, Tensor]:
        """The named tasks' outputs, in their order, from those of the heads."""
        return {
            task: product_log_odds([outputs[factor] for factor in self.products[task]])
            if task in self.products
            else outputs[task]
            for task in tasks
        }

    def _named(self, tasks: Iterable[str] | None) -> list[str]:
        if tasks is None:
            return self.tasks
        named = list(dict.fromkeys(tasks))
        for task in named:
            if task not in self.heads and task not in self.products:
                raise UnknownName("task", task, self.tasks, where="model")
        return named


def build_model(
    spec: ModelSpec,
    schema: InputSchema | Mapping[str, InputSchema],
    outputs: Mapping[str, int | OutputSchema],
    heads: Mapping[str, Iterable[int]] | None = None,
    *,
    seed: int,
    encoder: EncoderFactory | None = None,
    attachments: Sequence[AttachmentOptions] = (),
    sources: Mapping[str, str | Sequence[str]] | None = None,
    products: Mapping[str, Sequence[str]] | None = None,
    sharing_tasks: Sequence[str] | None = None,
) -> MultiTaskModel:
    """A new model.

    Every part is initialised from (seed, its own name): the encoder's start depends on no task, a head's on its own
    task only, so adding a task changes nothing else. The global random state is untouched.

    Args:
        spec: the recipe's `model:`.
        schema: the inputs, of every source or by source.
        outputs: task -> how many outputs it has, in order, or what they stand for (a number alone is taken as
            `OutputSchema.of` says).
        heads: task -> hidden sizes of its head; a task that is not named has none.
        encoder: a factory instead of `spec.encoder`.
        attachments: options of those that belong to the model.
        sources: task -> its source, or its sources, where there are several.
        products: task -> the tasks whose probabilities multiply to its own; it has no part of the model to itself.
        sharing_tasks: the architecture's, in its order, where of some only what others read is left.
    """
    products, heads = dict(products or {}), dict(heads or {})
    _check_tasks(outputs, heads)
    said = {task: OutputSchema.of(each) if isinstance(each, int) else each for task, each in outputs.items()}
    check_products(products, {task: each.width for task, each in said.items()})
    tasks = {task: each for task, each in said.items() if task not in products}
    schemas = {"data": schema} if isinstance(schema, InputSchema) else dict(schema)
    stems = None
    if spec.stems is not None:
        named = {task: (sources or {}).get(task, next(iter(schemas))) for task in tasks}
        of = {task: (name,) if isinstance(name, str) else tuple(name) for task, name in named.items()}
        stems = Stems(spec.stems, schemas, of, seed)
    read = one_schema(schemas) if stems is None else stems.trunk_schema
    architecture = SHARING.find(spec.sharing.kind)
    make_encoder = _EncoderMaker(spec, read, seed, encoder, architecture.reads)
    sharing_tasks = _checked_tasks(list(tasks), sharing_tasks)
    sharing = architecture(make_encoder, {task: tasks.get(task) for task in sharing_tasks}, spec.sharing, seed)
    check_readable(sharing, spec.sharing.kind)
    modules = TaskModules()
    for task, stands_for in tasks.items():
        with seeded(seed, "head", task):
            modules[task] = sharing.head(task, stands_for, tuple(heads.get(task, ())))
    resolved = _resolved(spec, sharing, stems)
    transforms = attached(attachments, sharing, list(tasks), seed)
    model = MultiTaskModel(sharing, modules, resolved, transforms, stems, products, list(outputs), sharing_tasks)
    if spec.init_from is not None:
        model.start = initialise_from(model, spec.init_from)
    return model


def sharing_tasks_of(model: MultiTaskModel, tasks: Collection[str]) -> list[str] | None:
    """The architecture's tasks in this model without the heads of all but `tasks`; None where they are these tasks, in
    their order."""
    sharing_tasks = model.read_by(tasks)
    return None if sharing_tasks == [task for task in tasks if task not in model.products] else sharing_tasks


def _checked_tasks(tasks: list[str], sharing_tasks: Sequence[str] | None) -> list[str]:
    if sharing_tasks is None:
        return tasks
    for task in tasks:
        if task not in sharing_tasks:
            raise UnknownName("task", task, sharing_tasks, where="sharing_tasks")
    return list(sharing_tasks)


def _resolved(spec: ModelSpec, sharing: nn.Module, stems: Stems | None) -> ModelSpec:
    """The spec that builds the same model from a checkpoint alone: what was read from elsewhere is in the weights."""
    changed: dict[str, Any] = {"init_from": None}
    encoder = _options_read(sharing)
    if encoder is not None:
        changed["encoder"] = encoder
    if stems is not None and spec.stems is not None:
        read = {name: _options_read(stem) for name, stem in stems.stems.items()}
        of = {**spec.stems.of, **{name: options for name, options in read.items() if options is not None}}
        changed["stems"] = spec.stems.model_copy(update={"of": of})
    return spec.model_copy(update=changed)


def _options_read(module: nn.Module) -> EncoderOptions | None:
    """The options of the first encoder that reads files."""
    found = (getattr(part, "options", None) for part in module.modules())
    return next((options for options in found if isinstance(options, EncoderOptions)), None)


def _check_tasks(outputs: Mapping[str, int | OutputSchema], heads: Mapping[str, Any]) -> None:
    if not outputs:
        raise BadValue("the tasks of a model", [], "at least one task with its number of outputs")
    for task, each in outputs.items():
        width = each.width if isinstance(each, OutputSchema) else each
        if not isinstance(width, int) or width < 1:
            raise BadValue(f"outputs of task {task!r}", width, "a positive int")
    for task in heads:
        if task not in outputs:
            raise UnknownName("task", task, outputs, where="heads")


class _EncoderMaker:
    """The encoders of an architecture; see `MakeEncoder`."""

    def __init__(
        self, spec: ModelSpec, schema: InputSchema, seed: int, factory: EncoderFactory | None, reads: Sequence[str]
    ) -> None:
        self.options = spec.encoder
        if self.options is None and spec.stems is not None:
            # nothing between what the stems give and what the tasks share
            self.options = as_they_are() if schema.tokens else MLP.Options(hidden_sizes=())
        self.schema, self.seed, self.factory, self.reads = schema, seed, factory, reads
        self.reader, self.decoder = f"sharing {spec.sharing.kind!r}", spec.decoder
        if self.decoder is not None and "pyramid" not in reads:
            raise BadValue("model.decoder", self.decoder.model_dump(), f"nothing, as {self.reader} reads no pyramid")

    def __call__(self) -> Encoder:
        with seeded(self.seed, "encoder"):
            if self.factory is None:
                encoder = build(self.options, self.schema)
            else:
                encoder = build_from_factory(self.factory, self.schema)
        require_gives(encoder, self.reads, self.reader)
        return encoder

    def of(self, options: EncoderOptions, name: str) -> Encoder:
        with seeded(self.seed, "encoder", name):
            encoder = build(options, self.schema)
        require_gives(encoder, ["vector"], f"{self.reader}: {name}")
        return encoder


def describe(model: MultiTaskModel) -> dict[str, Any]:
    """{"parameters": total, "shared": what serves all tasks, "private": {task: its own}}, counted in numbers, and
    "conditioning": {task: what tells the network its task, in words} where it is told."""
    private = {task: sum(parameter.numel() for parameter in _private(model, task)) for task in model.tasks}
    total = sum(parameter.numel() for parameter in model.parameters())
    told = {task: words for task in model.heads if (words := model.sharing.condition(task)) is not None}
    counts = {"parameters": total, "shared": total - sum(private.values()), "private": private}
    return {**counts, "conditioning": told} if told else counts


def _private(model: MultiTaskModel, task: str) -> list[nn.Parameter]:
    owned = [module for module in model.modules() if isinstance(module, TaskModules) and task in module]
    return [parameter for modules in owned for parameter in modules[task].parameters()]
