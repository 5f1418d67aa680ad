"""The `model:` part of a recipe, strict: `kind` selects an encoder or a sharing architecture, whose own options follow.

This module imports no torch; the class behind a kind is imported when a recipe names it.
"""

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SerializeAsAny, ValidationInfo

from polytask.core.catalogue import Catalogue
from polytask.core.errors import BadValue
from polytask.sharing.names import ENCODERS, SHARING


class Options(BaseModel):
    """What every set of options has in common: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class EncoderOptions(Options):
    """Options of an encoder; a subclass declares `kind: Literal["its name"]` and its own fields."""

    kind: str


class SharingOptions(Options):
    """Options of a sharing architecture; a subclass declares `kind: Literal["its name"]` and its own fields."""

    kind: str


class _Variant:
    """Turns `mlp` or `{kind: mlp, ...}` into the options of the class that the catalogue has under that name."""

    def __init__(self, catalogue: Catalogue) -> None:
        self.catalogue = catalogue

    def __call__(self, value: Any, info: ValidationInfo) -> Any:
        if value is None or isinstance(value, Options):
            return value
        if isinstance(value, str):
            value = {"kind": value}
        if not isinstance(value, dict) or not isinstance(value.get("kind"), str):
            raise BadValue(f"{info.field_name}", value, f"a mapping with kind: one of {self.catalogue.names()}")
        return self.catalogue.find(value["kind"]).Options.model_validate(value)


class ModelSpec(Options):
    """What a model is made of.

    Attributes:
        init_from: a checkpoint directory whose tensors the new model starts from.
        encoder: what turns inputs into features; None when a factory from Python is given instead.
        sharing: how the tasks share it.
    """

    init_from: str | None = None
    encoder: Annotated[SerializeAsAny[EncoderOptions] | None, BeforeValidator(_Variant(ENCODERS))] = None
    sharing: Annotated[SerializeAsAny[SharingOptions], BeforeValidator(_Variant(SHARING))] = Field(
        default="hard", validate_default=True
    )
