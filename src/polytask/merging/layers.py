"""Where in the depth of a model a tensor is, from names alone: names are data, not architecture.

The first number in a dotted name is its layer's (`model.layers.7.mlp.up_proj.weight`), what stands before it names the
stack (`model.layers`). A stack's first layer has depth 0, its last depth 1; the only layer of a stack is its last.
"""

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

OUTSIDE = (("*embed*", 0.0), ("*.wte.*", 0.0), ("*.wpe.*", 0.0), ("wte.*", 0.0), ("wpe.*", 0.0), ("*", 1.0))
"""Depths of tensors that are in no numbered layer: embeddings come before the layers, the rest (norms, heads) after."""


class Place(NamedTuple):
    """The stack and the number in it."""

    stack: str
    number: int

    @property
    def layer(self) -> str:
        return f"{self.stack}.{self.number}" if self.stack else str(self.number)


def place_of(name: str) -> Place | None:
    """
    >>> place_of("model.layers.7.mlp.up_proj.weight")
    Place(stack='model.layers', number=7)
    """
    parts = name.split(".")
    for position, part in enumerate(parts):
        if part.isdecimal():
            return Place(".".join(parts[:position]), int(part))
    return None


def renumbered(name: str, number: int) -> str:
    """The same tensor of another layer.

    >>> renumbered("model.layers.7.mlp.up_proj.weight", 2)
    'model.layers.2.mlp.up_proj.weight'
    """
    place = place_of(name)
    if place is None:
        return name
    head = Place(place.stack, number).layer
    return head + name[len(place.layer) :]


def depths(
    names: Iterable[str], stated: Sequence[tuple[str, float]] = (), outside: Sequence[tuple[str, float]] = ()
) -> dict[str, float]:
    """name -> depth in [0, 1].

    Args:
        names: all tensors of the model.
        stated: (pattern, depth), the first that fits goes before everything else.
        outside: the same for names that are in no numbered layer; then comes OUTSIDE.
    """
    listed = list(names)
    places = {name: place_of(name) for name in listed}
    numbers: dict[str, list[int]] = {}
    for place in places.values():
        if place is not None:
            numbers.setdefault(place.stack, []).append(place.number)
    order = {
        stack: {number: rank for rank, number in enumerate(sorted(set(found)))} for stack, found in numbers.items()
    }
    found: dict[str, float] = {}
    for name, place in places.items():
        own = first_fitting(name, stated)
        if own is None and place is not None:
            ranks = order[place.stack]
            own = ranks[place.number] / (len(ranks) - 1) if len(ranks) > 1 else 1.0
        found[name] = float(first_fitting(name, (*outside, *OUTSIDE)) or 0.0) if own is None else float(own)
    return found


def stacks(names: Iterable[str]) -> Mapping[str, int]:
    """stack -> how many layers it has, numbered from 0."""
    found: dict[str, int] = {}
    for place in map(place_of, names):
        if place is not None:
            found[place.stack] = max(found.get(place.stack, 0), place.number + 1)
    return found


def layer_of(name: str) -> str:
    """The numbered layer of a tensor; outside of layers its module.

    >>> layer_of("model.layers.7.mlp.up_proj.weight"), layer_of("model.norm.weight")
    ('model.layers.7', 'model.norm')
    """
    place = place_of(name)
    return place.layer if place is not None else name.rpartition(".")[0] or name


def first_fitting(name: str, table: Sequence[tuple[str, float]]) -> float | None:
    """The number of the first pattern that the name fits."""
    return next((depth for pattern, depth in table if fnmatchcase(name, pattern)), None)
