"""The `model:` part of a recipe, strict: `kind` selects an encoder or a sharing architecture, whose own options follow.

This module imports no torch; the class behind a kind is imported when a recipe names it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, GetCoreSchemaHandler, GetJsonSchemaHandler, SerializeAsAny, ValidationInfo
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from polytask.core.catalogue import Catalogue
from polytask.core.errors import BadValue, UnknownName
from polytask.core.validation import Strict, validated
from polytask.sharing.names import ATTACHMENTS, ENCODERS, SHARING


class EncoderOptions(Strict):
    """Options of an encoder; a subclass declares `kind: Literal["its name"]` and its own fields.

    `widths`: the fields that say how wide it is, each with what it must be a multiple of.
    """

    widths: ClassVar[dict[str, int]] = {"hidden_sizes": 1}
    kind: str


class SharingOptions(Strict):
    """Options of a sharing architecture; a subclass declares `kind: Literal["its name"]` and its own fields.

    `widths`: as of an encoder.
    """

    widths: ClassVar[dict[str, int]] = {"hidden_sizes": 1, "hidden_size": 2, "width": 2, "state": 1}
    kind: str

    def of_tasks(self, tasks: Sequence[str]) -> Self:
        """The options of a model that has lost all but these tasks."""
        return self


class AttachmentOptions(Strict):
    """Options of an attachment; a subclass declares `kind: Literal["its name"]` and its own fields."""

    kind: str


@dataclass(frozen=True)
class _Kind:
    """Turns `mlp` or `{kind: mlp, ...}` into the options of the class that the catalogue has under that name."""

    catalogue: Catalogue

    def __call__(self, value: Any, info: ValidationInfo) -> Any:
        return None if value is None else self.options(value, f"model.{info.field_name}")

    def options(self, value: Any, where: str) -> Any:
        if isinstance(value, Strict):
            return value
        if isinstance(value, str):
            value = {"kind": value}
        if not isinstance(value, dict) or not isinstance(value.get("kind"), str):
            raise BadValue(where, value, f"a kind ({', '.join(self.catalogue.names())}) or a mapping with kind")
        return validated(self.catalogue.find(value["kind"]).Options, value, where)

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return BeforeValidator(self.__call__).__get_pydantic_core_schema__(source, handler)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """For editors: a name, or any of the options in the catalogue."""
        options = [self.catalogue.find(name).Options.__pydantic_core_schema__ for name in self.catalogue.names()]
        return {"anyOf": [{"enum": self.catalogue.names()}, *(handler(each) for each in options)]}


EncoderChoice = Annotated[SerializeAsAny[EncoderOptions], _Kind(ENCODERS)]
"""An encoder in a recipe: `mlp` or `{kind: mlp, ...}`."""


@dataclass(frozen=True)
class _Attached:
    """Turns a list of names and mappings into the options of the attachments; each may be there once."""

    def __call__(self, value: Any) -> Any:
        if not isinstance(value, list | tuple):
            raise BadValue("attachments", value, "a list, [rotograd, {kind: rep_mtl}]")
        found = tuple(_Kind(ATTACHMENTS).options(each, "attachments") for each in value)
        kinds = [options.kind for options in found]
        for kind in kinds:
            if kinds.count(kind) > 1:
                raise BadValue("attachments", kinds, f"{kind} once")
        return found

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return BeforeValidator(self.__call__).__get_pydantic_core_schema__(source, handler)


Attachments = Annotated[tuple[SerializeAsAny[AttachmentOptions], ...], _Attached()]


class AttachedSpec(Strict):
    """Attachments by themselves, as a checkpoint holds those of its model."""

    attachments: Attachments = ()


@dataclass(frozen=True)
class _KindsByName:
    """{name: kind or {kind: ..., ...}} -> {name: the options of that encoder}."""

    def __call__(self, value: Any) -> Any:
        if not isinstance(value, dict):
            raise BadValue("model.stems.of", value, "a mapping {name: encoder}")
        return {name: _Kind(ENCODERS).options(each, f"model.stems.of.{name}") for name, each in value.items()}

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return BeforeValidator(self.__call__).__get_pydantic_core_schema__(source, handler)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {"type": "object", "additionalProperties": _Kind(ENCODERS).__get_pydantic_json_schema__(schema, handler)}


class StemsSpec(Strict):
    """What reads the inputs before the trunk (`encoder`), where sources or tasks do not all read them alike.

    Where a stem gives tokens the trunk reads a sequence, in which what another stem gives as a vector is one token.

    Attributes:
        by: a stem for each source, or for each task.
        width: of what every stem gives, of a token where it gives tokens; a stem whose encoder has another width gets
            a linear map.
        default: the encoder of a stem that `of` does not name.
        of: source or task -> the encoder of its stem.
    """

    by: Literal["source", "task"] = "source"
    width: int = Field(default=64, ge=1)
    default: EncoderChoice | None = None
    of: Annotated[dict[str, SerializeAsAny[EncoderOptions]], _KindsByName()] = Field(default_factory=dict)


class DecoderSpec(Strict):
    """A task's way from a feature pyramid to the map that its head reads.

    Attributes:
        width: of the map, numbers a pixel.
        strides: task -> pixels of the image a side of an output pixel; 1 for the others: a label a pixel.
        auxiliary: weight of a task's loss at heads that read the decoder's inner maps, in training only (0: none).
    """

    widths: ClassVar[dict[str, int]] = {"width": 4}
    width: int = Field(default=32, ge=1)
    strides: dict[str, Annotated[int, Field(ge=1)]] = Field(default_factory=dict)
    auxiliary: float = Field(default=0.4, ge=0)


class ModelSpec(Strict):
    """What a model is made of.

    Attributes:
        init_from: a checkpoint directory whose tensors the new model starts from.
        stems: what reads the inputs first, by source or task; None lets the encoder read them.
        encoder: what turns inputs into features, after the stems if there are any; None when a factory from Python is
            given instead, or where the stems suffice.
        sharing: how the tasks share it.
        decoder: of each task, where the encoder gives a pyramid.
    """

    init_from: str | None = None
    stems: StemsSpec | None = None
    encoder: EncoderChoice | None = None
    sharing: Annotated[SerializeAsAny[SharingOptions], _Kind(SHARING)] = Field(default="hard", validate_default=True)
    decoder: DecoderSpec | None = None


def check_stems(spec: StemsSpec, sources: list[str], tasks: list[str]) -> None:
    """UnknownName for a stem of a source or task that the data lack."""
    known = tasks if spec.by == "task" else sources
    for name in spec.of:
        if name not in known:
            raise UnknownName(spec.by, name, known, "model.stems.of")
