"""A trained model from its directory alone: raw rows in, predictions or scores out."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from polytask.checkpoints import read_checkpoint, resolve
from polytask.core.errors import CheckpointError, DataError, MissingInput, UnknownName
from polytask.core.inputs import InputSchema
from polytask.core.outputs import OutputSchema
from polytask.core.validation import validated
from polytask.evaluation.routed import RoutedModel
from polytask.merging.routers import read_router
from polytask.merging.routing import FILE as ROUTER
from polytask.sharing import AttachedSpec, ModelSpec, MultiTaskModel, build_model
from polytask.sharing.stems import named_stem
from polytask.tasks.data import read_inputs
from polytask.tasks.examples import Batch, Ragged
from polytask.tasks.features.feature import Place
from polytask.tasks.preprocess import Preprocessor
from polytask.tasks.target import Target

if TYPE_CHECKING:
    import polars

_BATCH = 1024

Outputs = dict[str, torch.Tensor]
"""task -> the raw outputs of its head for some rows."""


class Trained:
    """A model with the preprocessing it was trained with; made by `load`.

    Attributes:
        model: the network, in evaluation mode; of a merge that keeps a router with that.
        targets: the tasks, fitted.
        path: the checkpoint directory.
        card: what the directory says about itself.
        recipe: what it was trained by.
    """

    def __init__(
        self,
        path: Path,
        card: Mapping[str, Any],
        model: MultiTaskModel | RoutedModel,
        preprocessors: Mapping[str, Preprocessor],
        targets: Mapping[str, Target],
        sources: Mapping[str, list[str]],
        recipe: Mapping[str, Any] | None = None,
    ) -> None:
        self.path, self.card, self.model, self.recipe = path, dict(card), model, dict(recipe or {})
        self.targets = dict(targets)
        self._preprocessors, self._sources = dict(preprocessors), dict(sources)

    def sources_of(self, tasks: Iterable[str] | None = None) -> list[str]:
        """The sources that these tasks' rows came from."""
        named = self._named(tasks)
        return [name for name, own in self._sources.items() if any(task in own for task in named)]

    def columns(self, tasks: Iterable[str] | None = None, source: str | None = None) -> list[str]:
        """The raw columns that predicting these tasks needs, from `source` if that is named."""
        sources = self.sources_of(tasks) if source is None else [self._known_source(source)]
        return list(dict.fromkeys(column for name in sources for column in self._preprocessors[name].columns))

    def images_from(self, folder: Path) -> "Trained":
        """Makes the paths in image columns start from this folder (else from the working directory)."""
        for preprocessor in self._preprocessors.values():
            for feature in preprocessor.features:
                if feature.kind == "image":
                    vars(feature).update(root=folder)
        return self

    @property
    def text_columns(self) -> list[str]:
        """Columns that held text in training: in a CSV file, `01` must stay text there."""
        features = [feature for preprocessor in self._preprocessors.values() for feature in preprocessor.features]
        found = [
            column
            for feature in features
            if feature.kind in ("text", "morgan") or getattr(feature, "type", None) == "text"
            for column in feature.columns
        ]
        for target in self.targets.values():
            if any(isinstance(value, str) for value in (*target.classes, target.task.positive)):
                found += target.task.label_columns
        return list(dict.fromkeys(found))

    def predict(
        self,
        rows: "polars.DataFrame | Mapping[str, Any]",
        tasks: Iterable[str] | None = None,
        place: Place | None = None,
        source: str | None = None,
    ) -> "polars.DataFrame":
        """A column a task, in the order of the rows: probabilities, classes or values in the label's units (see
        Target.decode).

        With several sources the tasks of each are predicted from the same rows, which must have the columns that these
        sources need. `place` says where the rows come from, for messages. `source` names the source whose columns and
        stem all these tasks are to read, also one that they never had in training; a task of several sources needs it.
        """
        import polars

        outputs = self.outputs(rows, self._named(tasks), place, source)
        columns: dict[str, Any] = {}
        for task, values in outputs.items():
            columns |= self.targets[task].decode(values)
        return polars.DataFrame(columns)

    def predict_after_each(
        self,
        rows: "polars.DataFrame | Mapping[str, Any]",
        tasks: Iterable[str] | None = None,
        place: Place | None = None,
        source: str | None = None,
    ) -> "list[polars.DataFrame]":
        """What `predict` would give before it has seen any modality, after the first, ...; the last is what it gives.

        Raises: MissingInput for a model whose heads predict once.
        """
        import polars

        if not isinstance(self.model, MultiTaskModel):
            raise MissingInput(f"{self.path}: a merge that keeps a router predicts once")
        found = self._outputs(self.model.after_each, rows, self._named(tasks), place, source)
        stages = zip(*(values.unbind(1) for values in found.values()), strict=True)
        frames = []
        for stage in stages:
            decoded = [self.targets[task].decode(values) for task, values in zip(found, stage, strict=True)]
            frames.append(polars.DataFrame({name: column for columns in decoded for name, column in columns.items()}))
        return frames

    def outputs(
        self, rows: Any, tasks: Iterable[str], place: Place | None = None, source: str | None = None
    ) -> dict[str, torch.Tensor]:
        """The heads' raw outputs (logits; standardised values) for each task."""
        return self._outputs(self.model, rows, list(tasks), place, source)

    def _outputs(
        self, model: Callable[..., Outputs], rows: Any, wanted: list[str], place: Place | None, source: str | None
    ) -> Outputs:
        """What the model, or a way to call it, gives for these rows."""
        frame = _frame(rows)
        if source is not None:
            inputs = self._preprocessors[self._known_source(source)].transform(frame, place)
            return self._forward(model, inputs, wanted, frame.height, **named_stem(self.model, source))
        for task in wanted:
            several = self.sources_of([task])
            if len(several) > 1:
                which = f"source={several[0]!r}, or on the command line --source {several[0]}"
                raise MissingInput(
                    f"task {task!r} has several sources, {', '.join(several)}: say which one the rows are of, {which}"
                )
        found: dict[str, torch.Tensor] = {}
        for source, here in self._readers(wanted).items():
            found |= self._forward(model, self._preprocessors[source].transform(frame, place), here, frame.height)
        return {task: found[task] for task in wanted}

    def pieces(
        self, rows: Any, source: str | None = None
    ) -> Iterator[tuple[list[str], dict[str, torch.Tensor], str | None]]:
        """(tasks, what is read of some of these rows for them, by which stem), of the source that the rows are of
        (None: one source after the other)."""
        frame, readers = _frame(rows), self._readers(list(self.targets))
        if source is not None and source not in readers:
            raise UnknownName("source", source, readers, str(self.path))
        for name in readers if source is None else [source]:
            for inputs in self._batches(self._preprocessors[name].transform(frame), frame.height):
                yield readers[name], inputs, named_stem(self.model, name).get("stem")

    def _readers(self, tasks: list[str]) -> dict[str, list[str]]:
        """Source -> those of the tasks that it has."""
        found = {source: [task for task in tasks if task in own] for source, own in self._sources.items()}
        return {source: here for source, here in found.items() if here}

    def evaluate(
        self,
        rows: "polars.DataFrame | Mapping[str, Any]",
        tasks: Iterable[str] | None = None,
        place: Place | None = None,
        source: str | None = None,
    ) -> dict[str, dict[str, float | None]]:
        """{task: {metric: value}} on rows that have the label columns; None where a metric is undefined. `source` as
        for `predict`."""
        frame, named = _frame(rows), self._named(tasks)
        where = None if place is None else place.where
        encoded = {
            task: (*self.targets[task].encode(frame, where), self.targets[task].groups(frame, where)) for task in named
        }
        outputs = self.outputs(frame, named, place, source)
        return {task: self.targets[task].score(outputs[task], *encoded[task]) for task in named}

    def _forward(
        self, model: Callable[..., Outputs], inputs: Mapping[str, Any], tasks: list[str], height: int, **stem: str
    ) -> Outputs:
        pieces: list[dict[str, torch.Tensor]] = []
        with torch.inference_mode():
            for batch in self._batches(inputs, height):
                pieces.append({task: y.cpu() for task, y in model(batch, tasks, **stem).items()})
        return {task: torch.cat([piece[task] for piece in pieces]) for task in tasks}

    def _batches(self, inputs: Mapping[str, Any], height: int) -> Iterator[dict[str, torch.Tensor]]:
        """Some rows at a time, on the model's device."""
        device = next(self.model.parameters()).device
        if height == 0:
            raise DataError("the rows to predict: found none; allowed: at least one row")
        for start in range(0, height, _BATCH):
            index = torch.arange(start, min(start + _BATCH, height))
            batch = {name: x.padded(index) if isinstance(x, Ragged) else x[index] for name, x in inputs.items()}
            yield Batch(batch, {}, {}, index, "").to(device).inputs

    def _known_source(self, source: str) -> str:
        if source not in self._preprocessors:
            raise UnknownName("source", source, self._preprocessors, str(self.path))
        return source

    def _named(self, tasks: Iterable[str] | None) -> list[str]:
        named = list(self.targets) if tasks is None else list(tasks)
        for task in named:
            if task not in self.targets:
                raise UnknownName("task", task, self.targets, str(self.path))
        return named


def load(directory: str | Path, *, encoder: Callable[..., nn.Module] | None = None, device: str = "cpu") -> Trained:
    """The model of a checkpoint directory, or of a run's best checkpoint.

    Args:
        directory: what `train` wrote, or one of its checkpoints.
        encoder: the factory that the model was trained with, where it came from Python.
        device: where the model is put.
    """
    path = resolve(Path(directory))
    checkpoint = read_checkpoint(path)
    config = checkpoint.config
    if config["python_encoder"] and encoder is None:
        raise MissingInput(
            f"{path}: trained with an encoder from Python: pass the same factory, load(directory, encoder=factory)"
        )
    model = model_of(config, encoder, str(path))
    try:
        model.load_state_dict(checkpoint.tensors())
    except RuntimeError as error:
        raise CheckpointError(
            f"{path}: the tensors do not fit the model of config.json: {str(error).splitlines()[1].strip()}"
        ) from None
    router = path / ROUTER
    whole = RoutedModel(model, read_router(router)) if router.is_file() else model
    preprocessors, targets = read_inputs(path)
    sources = {name: values["tasks"] for name, values in checkpoint.inputs["sources"].items()}
    kept = {task: targets[task] for task in config["outputs"]}
    return Trained(path, checkpoint.card, whole.to(device).eval(), preprocessors, kept, sources, checkpoint.recipe)


def model_of(config: Mapping[str, Any], encoder: Callable[..., nn.Module] | None, where: str) -> MultiTaskModel:
    """The model that config.json describes, with the values that it starts with; `where` is for messages."""
    try:
        spec = validated(ModelSpec, config["model"], "config.json: model")
        attached = validated(AttachedSpec, {"attachments": config.get("attachments", ())}, "config.json")
    except UnknownName as error:
        raise CheckpointError(f"{where}: {error}; --load FILE.py imports the file that adds it") from None
    return build_model(
        spec,
        {name: InputSchema.from_json(schema) for name, schema in config["schemas"].items()},
        {task: OutputSchema.from_json(schema) for task, schema in config["outputs"].items()},
        config["heads"],
        seed=0,
        encoder=encoder,
        attachments=attached.attachments,
        sources=config["sources"],
        products=config.get("products"),
        sharing_tasks=config.get("sharing_tasks"),
    )


def _frame(rows: Any) -> "polars.DataFrame":
    import polars

    return rows if isinstance(rows, polars.DataFrame) else polars.DataFrame(rows)
