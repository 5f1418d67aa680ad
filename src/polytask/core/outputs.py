"""What a task's outputs stand for: the one thing that tasks and what answers them must agree on."""

from typing import Any, Literal, NamedTuple

Meaning = Literal["choice", "flags", "numbers"]

STANDARDISED = (-4.0, 4.0)
"""Limits of numbers with mean 0 and standard deviation 1: hardly any lie outside."""


class OutputSchema(NamedTuple):
    """Stored in config.json, so that a model is rebuilt from it.

    Attributes:
        means: "choice": one of the labels is right, and the outputs are the logarithms of their probabilities, up to a
            constant; "flags": each label is right or not by itself, and the outputs are their log odds; "numbers".
        names: text for each output: a label, a column, a coordinate.
        limits: between which numbers lie, in the units of the outputs; None where nothing is known.
        of_rows: whether they are a row's even where an encoder gives maps; else they are a pixel's there.
    """

    means: Meaning
    names: tuple[str, ...]
    limits: tuple[float, float] | None = None
    of_rows: bool = False

    @property
    def width(self) -> int:
        """How many outputs there are."""
        return len(self.names)

    @classmethod
    def of(cls, width: int) -> "OutputSchema":
        """Where only their number is said: one output is a standardised number, several are the labels 0, 1, ..."""
        names = tuple(str(number) for number in range(width))
        return cls("numbers", names, STANDARDISED) if width == 1 else cls("choice", names)

    def to_json(self) -> dict[str, Any]:
        return self._asdict()

    @classmethod
    def from_json(cls, values: Any) -> "OutputSchema":
        """From what `to_json` gave, or from a number of outputs, as checkpoints had before there were schemas."""
        if isinstance(values, int):
            return cls.of(values)
        limits = values["limits"]
        between = None if limits is None else (limits[0], limits[1])
        return cls(values["means"], tuple(values["names"]), between, values.get("of_rows", False))
