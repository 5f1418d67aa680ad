"""Values that differ by a tensor's name and depth.

A value of a plan is one of
- a number, truth value or word: the same for every tensor;
- a list of numbers, `[0, 0.5, 1]`: read off at the tensor's depth, 0 at the first layer and 1 at the last, with
  straight lines in between;
- a list of `{pattern, value}`: the value of the first pattern that the tensor's name fits; an entry without a pattern
  fits every name. A pattern is the whole name with `*` for any characters (`*.mlp.*`).
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from polytask.core.errors import BadValue, Inconsistent, UnknownName

NOTHING = object()
"""What `value_at` gives where no pattern fits."""

Scalar = float | int | bool | str


def check_value(value: Any, where: str) -> Any:
    """The value, if it has one of the forms above."""
    if isinstance(value, Scalar) or value is None:
        return value
    if not isinstance(value, Sequence) or not value:
        raise BadValue(where, value, "a value, a list of numbers over depth, or a list of {pattern, value}")
    if all(_is_number(item) for item in value):
        return value
    for position, item in enumerate(value):
        place = f"{where}.{position}"
        if not isinstance(item, Mapping):
            raise BadValue(place, item, "{pattern, value}, or numbers only")
        for key in item:
            if key not in ("pattern", "value"):
                raise UnknownName("key", key, ("pattern", "value"), place)
        if "value" not in item:
            raise BadValue(place, dict(item), "{pattern, value}")
        if not isinstance(item.get("pattern", "*"), str):
            raise BadValue(f"{place}.pattern", item["pattern"], "text, as *.mlp.*")
        check_value(item["value"], f"{place}.value")
    return value


def value_at(value: Any, name: str, depth: float | None, where: str) -> Any:
    """The value for the tensor called `name`; NOTHING where no pattern fits.

    Args:
        value: in one of the forms above.
        name: of the tensor.
        depth: from 0, the first layer, to 1, the last; None where the tensor is in no layer.
        where: the value stands, for messages.
    """
    if not isinstance(value, Sequence) or isinstance(value, str):
        return value
    if all(_is_number(item) for item in value):
        if depth is None:
            raise Inconsistent(
                f"{where} is {list(value)!r}, by depth, and {name!r} has no depth; give it one in `depth:`"
            )
        return interpolated(value, depth)
    for item in value:
        if fnmatchcase(name, item.get("pattern", "*")):
            return value_at(item["value"], name, depth, where)
    return NOTHING


def interpolated(points: Sequence[float], depth: float) -> float:
    """Evenly spaced points joined by straight lines, read at depth in [0, 1].

    >>> [interpolated([0, 1, 4], depth) for depth in (0, 0.25, 0.5, 1)]
    [0.0, 0.5, 1.0, 4.0]
    """
    position = depth * (len(points) - 1)
    left = min(math.floor(position), max(len(points) - 2, 0))
    right = min(left + 1, len(points) - 1)
    share = position - left
    return float((1 - share) * points[left] + share * points[right])


def patterns_in(value: Any) -> Iterator[str]:
    """Every pattern that a value names."""
    if isinstance(value, Mapping):
        if isinstance(value.get("pattern"), str):
            yield value["pattern"]
        for item in value.values():
            yield from patterns_in(item)
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for item in value:
            yield from patterns_in(item)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
