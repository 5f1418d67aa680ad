"""Strict pydantic models, with their mistakes reported the way every mistake is: one line, where, found, allowed."""

import re
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from polytask.core.errors import BadValue, Inconsistent, MissingInput, PolytaskError, UnknownName, nearest


class Strict(BaseModel):
    """Frozen, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


M = TypeVar("M", bound=BaseModel)


def validated(model: type[M], values: Any, where: str, renamed: Mapping[str, str] | None = None) -> M:
    """The model made from `values`; the first mistake is raised as a typed error naming its place in the recipe.

    Args:
        model: of the values.
        values: as they were read.
        where: what they are, the beginning of every place.
        renamed: beginnings of places as the user wrote them, {"recipe.stages.0": "train"}.
    """
    if not isinstance(values, Mapping):
        raise BadValue(where, values, "a mapping")
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        raise _translated(error, model, where, renamed or {}) from None


def _translated(
    error: ValidationError, model: type[BaseModel], where: str, renamed: Mapping[str, str]
) -> PolytaskError:
    first = first_mistake(error)
    place = ".".join([where, *_written(model, first["loc"])])
    for beginning, written in renamed.items():
        if place == beginning or place.startswith(f"{beginning}."):
            place = f"{written}{place[len(beginning) :]}"
    if first["type"] in UNKNOWN_KEY:
        parent, _, key = place.rpartition(".")
        return UnknownName("key", key, _keys(model, first["loc"][:-1]), parent)
    return typed(first, place)


UNKNOWN_KEY = ("extra_forbidden", "invalid_key")
"""The types of pydantic's mistakes about a key that is not there: another text, or no text."""

_ALTERNATIVE = re.compile(r"(constrained-)?(bool|int|float|str)|(tuple|list|dict)\[.*\]")
"""What pydantic puts at the end of a place for an alternative of a union."""


def first_mistake(error: ValidationError) -> Any:
    """The first one that pydantic reports, an unknown key before others.

    Where a value is none of several alternatives: what is wrong inside it, if it has the form of one, else what all of
    them allow.
    """
    found = error.errors()
    first = next((mistake for mistake in found if mistake["type"] in UNKNOWN_KEY), found[0])
    *place, last = first["loc"] or ("",)
    if first["type"] in UNKNOWN_KEY or not _ALTERNATIVE.fullmatch(str(last)):
        return first
    mistakes = [mistake for mistake in found if list(mistake["loc"][: len(place)]) == place]
    inside = max(mistakes, key=lambda mistake: len(mistake["loc"]))
    if len(inside["loc"]) > len(first["loc"]):
        return {**inside, "loc": (*place, *inside["loc"][len(place) + 1 :])}
    return {**first, "loc": tuple(place), "msg": ", or ".join(dict.fromkeys(_allowed(each) for each in mistakes))}


def typed(mistake: Any, place: str, where: str | None = None) -> PolytaskError:
    """The error that a mistake is; `place` and `where` as of BadValue."""
    context = mistake.get("ctx", {})
    cause = context.get("error")
    whole = place if where is None else f"{where}: {place}"
    if isinstance(cause, PolytaskError):
        return cause
    if mistake["type"] == "missing":
        return MissingInput(f"{whole} is missing")
    if mistake["type"] == "value_error":  # the validator's own sentence
        return Inconsistent(f"{whole}: {cause}")
    if mistake["type"] == "union_tag_not_found":
        return MissingInput(f"{whole}.kind is missing")
    if mistake["type"] == "union_tag_invalid":
        return UnknownName("kind", context["tag"], _quoted(context["expected_tags"]), whole)
    return BadValue(place, mistake["input"], _allowed(mistake), where)


_WORDS = (  # pydantic's name for it, the recipe's
    (r"valid (tuple|list)\b", "list, [a, b]"),
    (r"valid (dictionary|dict)( or instance of \w+)?\b", "mapping, {key: value}"),
    (r"a valid integer.*", "a whole number"),
    (r"a valid number.*", "a number"),
    (r"a valid boolean.*", "true or false"),
    (r"a valid string", "text"),
    (r"(Tuple|List|Dictionary) should have at least (\d+) items? after validation, not \d+", r"at least \2 of them"),
    (r"String should have at least (\d+) characters?", r"at least \1 character"),
)


def _allowed(mistake: Any) -> str:
    """What pydantic's message says is allowed, without its preamble and in the recipe's words."""
    text = mistake["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    for pattern, words in _WORDS:
        text = re.sub(pattern, words, text)
    if mistake["type"] == "literal_error" and isinstance(mistake["input"], str):
        text += nearest(mistake["input"], _quoted(mistake["ctx"]["expected"]))
    return text


def _quoted(names: str) -> list[str]:
    """What stands between quotes."""
    return re.findall(r"'([^']*)'", names)


def _written(model: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    """A path without the names that pydantic puts in for the alternatives of a union."""
    current: type[BaseModel] | None = model
    parts: list[str] = []
    for part in path:
        if current is not None and part == current.__name__:
            continue
        parts.append(str(part))
        field = None if current is None else current.model_fields.get(str(part))
        if field is not None:
            current = _model_in(field.annotation)
    return parts


def _keys(model: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    """The keys that are allowed at a path inside a model; those of the innermost model that can be found."""
    current = model
    for part in path:
        if isinstance(part, int) or part == current.__name__:  # a place in a list, an alternative of a union
            continue
        field = current.model_fields.get(str(part))
        inner = None if field is None else _model_in(field.annotation)
        if inner is None:
            break
        current = inner
    return list(current.model_fields)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        found = _model_in(argument)
        if found is not None:
            return found
    return None
