"""The `train:` or `stages:` part of a recipe, and what holds for the whole run."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from polytask.core.errors import BadValue
from polytask.core.validation import Strict, validated
from polytask.sharing.spec import Attachments
from polytask.tasks.mixture import MixtureSpec


def _kind(value: Any) -> Any:
    """`pcgrad` is short for `{kind: pcgrad}`."""
    return {"kind": value} if isinstance(value, str) else value


class EngineChoice(Strict):
    """How a rule on gradients gets to see them: see docs/loop.md.

    `every` is of `interval`, `fraction` of `subset`; null is the default: 10 steps, a quarter of the rows. `tune` is of
    `auto`, and `chosen` what it has found, which a run writes into its recipe.
    """

    kind: Literal["auto", "exact", "layerwise", "representation", "subset", "interval"] = "auto"
    every: int | None = Field(default=None, ge=1)
    fraction: float | None = Field(default=None, gt=0, le=1)
    tune: bool = False
    chosen: Literal["auto", "exact", "layerwise"] | None = None

    @model_validator(mode="after")
    def _check(self) -> "EngineChoice":
        if self.every is not None and self.kind != "interval":
            raise ValueError(f"every belongs to interval, not to {self.kind}")
        if self.fraction is not None and self.kind != "subset":
            raise ValueError(f"fraction belongs to subset, not to {self.kind}")
        if self.tune and self.kind != "auto":
            raise ValueError(f"tune belongs to auto, not to {self.kind}")
        if self.chosen is not None and not self.tune:
            raise ValueError("chosen is what tune: true has found")
        return self

    def options(self) -> dict[str, Any]:
        """What the balancer takes; which rows are in a subset is the trainer's matter."""
        return self.model_dump(exclude_defaults=True, exclude={"fraction"}) | {"kind": self.kind}


class ClusterChoice(Strict):
    """Clusters of the tasks' order, found for a run: see docs/rules.md.

    Attributes:
        kind: what makes tasks alike.
        number: of clusters.
        values: {task: number} of index (null: the tasks' own `index`, else their order) or signal_to_noise; of affinity
            a row and a column a task.
    """

    kind: Literal["index", "signal_to_noise", "affinity"]
    number: int = Field(ge=1)
    values: dict[str, float] | tuple[tuple[float, ...], ...] | None = None


def _clusters(value: Any) -> Any:
    """{kind: index, number: 5}, or {cluster: [tasks]}."""
    if value is None or isinstance(value, ClusterChoice):
        return value
    where = "rule.clusters"
    if not isinstance(value, dict) or not value:
        raise BadValue(where, value, "{cluster: [tasks]} or {kind: index, number: 5}")
    if isinstance(value.get("kind"), str):
        return validated(ClusterChoice, value, where)
    for cluster, tasks in value.items():
        if not isinstance(tasks, list | tuple) or not all(isinstance(task, str) for task in tasks):
            raise BadValue(f"{where}.{cluster}", tasks, "a list of tasks")
    return value


class GeneratedSpec(Strict):
    """Labels that a network of its own makes up, for rule `maxl`: each class of a task is divided into `classes`."""

    task: str
    classes: int = Field(default=5, ge=2)


class RuleChoice(Strict):
    """A balancing rule and how it is applied; `parameters` are the rule's own (see `polytask rules NAME`)."""

    kind: str
    engine: Annotated[EngineChoice, BeforeValidator(_kind)] = EngineChoice()
    groups: Literal["all", "layer", "tensor"] = "all"
    scale: Literal["published", "sum", "mean", "unit"] = "published"
    clusters: Annotated[ClusterChoice | dict[str, tuple[str, ...]] | None, BeforeValidator(_clusters)] = None
    generated: GeneratedSpec | None = None
    parameters: dict[str, Any] = Field(default_factory=dict)

    def clusters_of(self, index: Mapping[str, float | None]) -> dict[str, Any] | None:
        """What the balancer takes; `index` is the tasks' own, which clusters by index follow where there is one."""
        if not isinstance(self.clusters, ClusterChoice):
            return self.clusters
        options = self.clusters.model_dump(exclude_none=True)
        if self.clusters.kind == "index" and any(place is not None for place in index.values()):
            options.setdefault("values", {task: place for task, place in index.items() if place is not None})
        return options


def _rule(value: Any) -> Any:
    """Keys that RuleChoice has not are the rule's parameters: `{kind: dwa, temperature: 1}`."""
    value = _kind(value)
    if not isinstance(value, dict) or "parameters" in value:
        return value
    own = {key: value[key] for key in value if key in RuleChoice.model_fields}
    return {**own, "parameters": {key: value[key] for key in value if key not in own}}


class OptimizerSpec(Strict):
    """An optimiser of torch.optim; an option that is null is that optimiser's own default."""

    kind: Literal["adamw", "adam", "sgd", "adagrad", "rmsprop"] = "adamw"
    lr: float = Field(default=1e-3, gt=0, allow_inf_nan=False)
    weight_decay: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    momentum: float | None = Field(default=None, ge=0, lt=1)
    betas: tuple[float, float] | None = None

    @model_validator(mode="after")
    def _check(self) -> "OptimizerSpec":
        if self.momentum is not None and self.kind not in ("sgd", "rmsprop"):
            raise ValueError(f"momentum belongs to sgd and rmsprop, not to {self.kind}")
        if self.betas is not None and self.kind not in ("adam", "adamw"):
            raise ValueError(f"betas belong to adam and adamw, not to {self.kind}")
        return self


class ScheduleSpec(Strict):
    """How the learning rate goes over a stage.

    Up linearly over the first steps, `warmup` as a fraction of all; then by kind, down towards `floor` times its value.
    """

    kind: Literal["constant", "linear", "cosine"] = "constant"
    warmup: float = Field(default=0.0, ge=0, lt=1)
    floor: float = Field(default=0.0, ge=0, le=1)


class EarlyStoppingSpec(Strict):
    """Ends a stage when the selection score has not risen above the stage's best, by more than `least_gain`, for
    `patience` evaluations; an undefined score has not risen."""

    patience: int = Field(ge=1)
    least_gain: float = Field(default=0.0, ge=0)


class AccumulateSpec(Strict):
    """A step's rows in parts, one after the other, where all at once need too much memory.

    Attributes:
        parts: how many.
        gram: how a rule on gradients sees the whole batch: from each task's gradients, "kept" from part to part; from
            parts that are computed again, "recomputed", with the memory of one gradient; or by "micro_mean", the mean
            of the parts' Gram matrices, which is an approximation.
    """

    parts: int = Field(default=1, ge=1)
    gram: Literal["kept", "recomputed", "micro_mean"] = "kept"

    @model_validator(mode="after")
    def _check(self) -> "AccumulateSpec":
        if self.parts == 1 and self.gram != "kept":
            raise ValueError(f"gram {self.gram!r} is of a step in several parts")
        return self


def _parts(value: Any) -> Any:
    """`8` is short for `{parts: 8}`."""
    return {"parts": value} if isinstance(value, int) and not isinstance(value, bool) else value


class RegularizerSpec(Strict):
    """A penalty on how far a stage moves the weights: strength / 2 * sum_i F_i (theta_i - start_i)^2.

    Attributes:
        kind: `l2_sp`, in which every element counts the same (F = 1); `fisher`, in which F is the diagonal of the
            Fisher information at the start, as in ITA and EWC.
        strength: 0 is no penalty.
        parameters: those that are penalised, by the beginning of their name; null is all that the stage trains but the
            heads.
        rows: of the training rows that `fisher` measures F on, the number; null is 256.
    """

    kind: Literal["l2_sp", "fisher"]
    strength: float = Field(ge=0, allow_inf_nan=False)
    parameters: tuple[str, ...] | None = Field(default=None, min_length=1)
    rows: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _check(self) -> "RegularizerSpec":
        if self.rows is not None and self.kind != "fisher":
            raise ValueError(f"rows belong to fisher, not to {self.kind}")
        return self

    @property
    def row_count(self) -> int:
        return 256 if self.rows is None else self.rows


class StageSpec(Strict):
    """One stage: which tasks, from which mixture, which parameters, balanced by which rule, for how long.

    Attributes:
        name: for events and messages.
        tasks: those trained in this stage; null is all.
        trainable: parameters that change, by the beginning of their name (`heads`, `sharing.encoder`), or `own`, what
            belongs to one task, as its head, gates and experts; null is all.
        rule, optimizer, schedule, mixture: see their own options.
        attachments: what is added at the shared representation. One that the model computes with belongs to it from
            the run's first stage on; a stage that does not name it leaves it as it is.
        regularizer: what keeps the weights near those that the stage begins with; null lets them go.
        epochs, steps: the length; one of the two, or neither for one epoch.
        batch_size: rows a step, over all processes.
        accumulate: parts that a step's rows are computed in; the step is that of the whole batch.
        clip: largest norm of the gradient; null leaves it.
        early_stopping: see there.
    """

    name: str = "train"
    tasks: tuple[str, ...] | None = Field(default=None, min_length=1)
    trainable: tuple[str, ...] | None = Field(default=None, min_length=1)
    rule: Annotated[RuleChoice, BeforeValidator(_rule)] = RuleChoice(kind="equal")
    attachments: Attachments = ()
    regularizer: RegularizerSpec | None = None
    optimizer: Annotated[OptimizerSpec, BeforeValidator(_kind)] = OptimizerSpec()
    schedule: Annotated[ScheduleSpec, BeforeValidator(_kind)] = ScheduleSpec()
    mixture: Annotated[MixtureSpec, BeforeValidator(_kind)] = MixtureSpec()
    epochs: int | None = Field(default=None, ge=1)
    steps: int | None = Field(default=None, ge=1)
    batch_size: int = Field(default=256, ge=1)
    accumulate: Annotated[AccumulateSpec, BeforeValidator(_parts)] = AccumulateSpec()
    clip: float | None = Field(default=None, gt=0)
    early_stopping: EarlyStoppingSpec | None = None

    @model_validator(mode="after")
    def _check(self) -> "StageSpec":
        if self.epochs is not None and self.steps is not None:
            raise ValueError("a stage has epochs or steps, not both")
        return self


class RunSpec(Strict):
    """What holds for a whole run.

    Attributes:
        seed: of everything random.
        device: auto takes the accelerator that is there, else the CPU.
        precision: float32, or mixed precision with bf16 or fp16.
        threads: of torch on the CPU; null leaves it. A resumed run takes as many as before, since sums depend on it.
        deterministic: torch.use_deterministic_algorithms.
        evaluate_every: steps between evaluations; null is once an epoch.
        checkpoint_every: steps between checkpoints, or "evaluation": after each. There is one at the end of each stage
            and at each best score too. "end" writes the best model when all is done, and nothing to resume from.
        keep: how many checkpoints stay besides the best.
        log_every: steps between step events.
        sync_batchnorm: BatchNorm over the global batch when several processes train.
        feature_cache_mb: the outputs of frozen encoder layers are kept for all epochs up to this size, in MiB, a source
            and split; 0 computes them in every step.
    """

    seed: int = 0
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    precision: Literal["float32", "bf16", "fp16"] = "float32"
    threads: int | None = Field(default=None, ge=1)
    deterministic: bool = True
    evaluate_every: int | None = Field(default=None, ge=1)
    checkpoint_every: int | Literal["evaluation", "end"] = "evaluation"
    keep: int = Field(default=1, ge=1)
    log_every: int = Field(default=10, ge=1)
    sync_batchnorm: bool = True
    feature_cache_mb: int = Field(default=4096, ge=0)
