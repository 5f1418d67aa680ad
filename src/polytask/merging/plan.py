"""The plan of a merge: data, never code. Unknown keys are errors; `kind` selects a variant, as in recipes."""

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from polytask.core.errors import BadValue, UnknownName
from polytask.core.validation import Strict
from polytask.merging.values import check_value

UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def size_in_bytes(text: int | str, what: str = "a size") -> int:
    """`5GB` (10^9 bytes each), `300MiB` (2^20 each) or a number of bytes.

    >>> size_in_bytes("5GB"), size_in_bytes("1 MiB"), size_in_bytes(12)
    (5000000000, 1048576, 12)
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?i?B?)", str(text).strip(), flags=re.IGNORECASE)
    unit = found[2].upper() if found else ""
    unit = unit if unit in UNITS else f"{unit}B"
    if found is None or unit not in UNITS or float(found[1]) * UNITS[unit] < 1:
        raise BadValue(what, text, "a size such as 5GB, 300MiB or a number of bytes")
    return round(float(found[1]) * UNITS[unit])


def _reference(value: Any) -> Any:
    """`DIR` is short for `{model: DIR}`."""
    return {"model": value} if isinstance(value, str) else value


def _kind(value: Any) -> Any:
    """`ties` is short for `{kind: ties}`; the other keys are its parameters."""
    value = {"kind": value} if isinstance(value, str) else value
    if not isinstance(value, dict) or "parameters" in value:
        return value
    own = {key: value[key] for key in value if key == "kind"}
    return {**own, "parameters": {key: value[key] for key in value if key != "kind"}}


class TaskInput(Strict):
    """One of the models that are merged.

    Attributes:
        model: a directory, a file, or a hub id; `@revision` and `+adapter` may follow.
        parameters: its own values of the rule's and the transforms' parameters that are numbers a task.
        prefix: a beginning that the names of its tensors have and the base's lack (`bert.`).
        mask: a safetensors file of numbers by which what fine-tuning changed is multiplied, element by element.
    """

    model: str = Field(min_length=1)
    parameters: dict[str, Any] = Field(default_factory=dict)
    prefix: str = ""
    mask: str | None = None

    @model_validator(mode="after")
    def _check(self) -> "TaskInput":
        for name, value in self.parameters.items():
            check_value(value, f"parameters.{name}")
        return self


class TransformChoice(Strict):
    """A change of each task's vector before the rule; `parameters` are its own."""

    kind: str
    parameters: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check(self) -> "TransformChoice":
        _check_parameters(self.kind, self.parameters)
        return self


class RuleChoice(Strict):
    """How the tasks are combined; `parameters` are the method's own (see `polytask rules NAME`)."""

    kind: str
    parameters: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check(self) -> "RuleChoice":
        _check_parameters(self.kind, self.parameters)
        return self


def _check_parameters(kind: str, parameters: dict[str, Any]) -> None:
    for name, value in parameters.items():
        for task, own in value.items() if isinstance(value, dict) else [("", value)]:
            check_value(own, ".".join(part for part in (kind, name, str(task)) if part))


class MergeData(Strict):
    """The rows that a learned merge reads of each task: some of a split of the run's own data.

    Attributes:
        split: train or valid; never test, which is what the merged model is scored on.
        rows: most rows of a task's source, drawn by the plan's seed; null takes all.
        batch_size: rows of a step, of each task.
        lean: compose weights layer by layer in every pass, which takes several times as long, instead of once a step,
            which takes the memory of two models more.
    """

    split: Literal["train", "valid"] = "valid"
    rows: int | None = Field(default=256, ge=1)
    batch_size: int = Field(default=16, ge=1)
    lean: bool = False


class KeptTensors(Strict):
    """Tensors that are not merged: `take` is base, a task, or drop."""

    pattern: str
    take: str = "base"


class DepthOf(Strict):
    """The depth of tensors, between 0 and 1; `outside`: only of those that are in no numbered layer."""

    pattern: str
    value: float = Field(ge=0, le=1)
    outside: bool = False


class SliceInput(Strict):
    """Layers [start, stop) of one model, and its parameters in this slice."""

    layers: tuple[int, int]
    parameters: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check(self) -> "SliceInput":
        start, stop = self.layers
        if not 0 <= start < stop:
            raise BadValue("layers", [start, stop], "[start, stop] with 0 <= start < stop")
        for name, value in self.parameters.items():
            check_value(value, f"parameters.{name}")
        return self


class Slice(Strict):
    """The next layers of the output: as many as each input gives. `base`: the base's layers, else the first task's."""

    inputs: dict[str, SliceInput] = Field(min_length=1)
    base: tuple[int, int] | None = None
    parameters: dict[str, Any] = Field(default_factory=dict)


class TokenOf(Strict):
    """A token of an input: itself by default, or another by its text or number."""

    model: str
    token: str | None = None
    token_id: int | None = Field(default=None, ge=0)


class TokenChoice(Strict):
    """Whose embedding a token gets where an input lacks it; null is zeros. `force`: in every input."""

    source: str | TokenOf | None
    force: bool = False


class TokenizerChoice(Strict):
    """The output's tokenizer where the inputs' differ: base, an input, or union; and what of some tokens."""

    source: str = "union"
    tokens: dict[str, TokenChoice] = Field(default_factory=dict)
    pad_to_multiple_of: int | None = Field(default=None, ge=1)


def _source(value: Any) -> Any:
    """`union` is short for `{source: union}`."""
    return {"source": value} if isinstance(value, str) else value


class MergePlan(Strict):
    """A whole plan.

    Attributes:
        version: of this format.
        description: one line for people.
        base: the model that the tasks were fine-tuned from; null where the rule needs none.
        tasks: name -> model, in order.
        rule: how they are combined.
        data: what a learned merge reads; null for every other rule.
        mask: a safetensors file of numbers by which what the rule gives is multiplied, element by element.
        values: a safetensors file of tensors that the output takes over as they are.
        transforms: what is done to each task vector before, in order.
        dtype: of the output; null keeps each tensor's type in the base (the first task, without a base).
        keep: tensors that are not merged.
        partial: tensors that only some inputs have: error; base (an input that lacks one counts as the base, what the
            base lacks is left out); available (merged over those that have it); drop.
        integers: tensors of whole numbers, such as BatchNorm's counters, are never merged: the base's (the first
            task's) or the largest, number by number; error refuses those that differ.
        tied: a second name of a tensor (`tie_word_embeddings`) that only some inputs have: drop leaves it out where the
            base does; error refuses it.
        vocabulary: tensors that differ in their first axis alone: error; base (the base's rows); largest (as many as
            the largest has; rows that an input lacks are the base's, else those of the largest).
        tokenizer: aligns inputs of different tokenizers by token; null takes inputs that number their tokens alike.
        donor: whose config and tokenizer the output gets: base or a task; null is the input that `tokenizer` names,
            else the base, else the first task.
        parent: check refuses a base that is not the parent of a fine-tune; accept takes it.
        depth: depths of tensors, where the layers' numbers do not say it; the first pattern that fits holds.
        slices: the output's layers from ranges of the inputs' layers; empty takes all as they are.
        shard_size: of an output file.
        seed: of everything random.
    """

    version: Literal[1] = 1
    description: str | None = None
    base: str | None = None
    tasks: dict[str, Annotated[TaskInput, BeforeValidator(_reference)]] = Field(min_length=1)
    rule: Annotated[RuleChoice, BeforeValidator(_kind)]
    data: MergeData | None = None
    mask: str | None = None
    values: str | None = None
    transforms: tuple[Annotated[TransformChoice, BeforeValidator(_kind)], ...] = ()
    dtype: Literal["float32", "float16", "bfloat16", "float64"] | None = None
    keep: tuple[KeptTensors, ...] = ()
    partial: Literal["error", "base", "available", "drop"] = "error"
    integers: Literal["base", "largest", "error"] = "base"
    tied: Literal["drop", "error"] = "drop"
    vocabulary: Literal["error", "base", "largest"] = "error"
    tokenizer: Annotated[TokenizerChoice | None, BeforeValidator(_source)] = None
    donor: str | None = None
    parent: Literal["check", "accept"] = "check"
    depth: tuple[DepthOf, ...] = ()
    slices: tuple[Slice, ...] = ()
    shard_size: int | str = "5GB"
    seed: int = 0

    @model_validator(mode="after")
    def _check(self) -> "MergePlan":
        size_in_bytes(self.shard_size, "shard_size")
        if "base" in self.tasks:
            raise BadValue("the name of a task", "base", "another name; `base:` names the base itself")
        owners = ["base", *self.tasks] if self.base is not None else list(self.tasks)
        if self.donor is not None and self.donor not in owners:
            raise UnknownName("input", self.donor, owners, "plan.donor")
        self._check_tokenizer(owners)
        for position, kept in enumerate(self.keep):
            if kept.take not in [*owners, "drop"]:
                raise UnknownName("input", kept.take, [*owners, "drop"], f"plan.keep.{position}.take")
        for place, parameters in self._per_task():
            for task in parameters:
                if task not in self.tasks:
                    raise UnknownName("task", task, self.tasks, place)
        return self

    def _check_tokenizer(self, owners: list[str]) -> None:
        if self.tokenizer is None:
            return
        if self.tokenizer.source not in ("union", *owners):
            raise UnknownName("input", self.tokenizer.source, ["union", *owners], "plan.tokenizer.source")
        for token, choice in self.tokenizer.tokens.items():
            owner = choice.source.model if isinstance(choice.source, TokenOf) else choice.source
            if owner is not None and owner not in owners:
                raise UnknownName("input", owner, owners, f"plan.tokenizer.tokens.{token}")

    def _per_task(self) -> list[tuple[str, dict[Any, Any]]]:
        """Every {task: ...} of the plan but `tasks`, with its place."""
        found = [(f"plan.slices.{number}.inputs", dict(part.inputs)) for number, part in enumerate(self.slices)]
        chosen = [("plan.rule", self.rule.parameters)]
        chosen += [(f"plan.transforms.{number}", part.parameters) for number, part in enumerate(self.transforms)]
        found += [
            (f"{place}.{name}", value)
            for place, parameters in chosen
            for name, value in parameters.items()
            if isinstance(value, dict)
        ]
        return found

    def resolved(self) -> dict[str, Any]:
        """Plain data with every default written out, which is itself a plan."""
        return self.model_dump(mode="json")
