"""What a kind of store is: what of each task's vector is kept beside the base, and how its tensors come back."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

from torch import Tensor

from polytask.merging.jobs import Source
from polytask.merging.reading import Rows
from polytask.merging.weights.interface import Weights

Parts = Mapping[str, Tensor]
"""What is kept of one tensor of one task, under short names without a colon."""

WHOLE = "whole"


class Packed(NamedTuple):
    """One tensor in the store.

    Attributes:
        parts: of each task, in order.
        merged: what all tasks' parts refer to, in the base's type; None for kinds that keep no such vector.
    """

    parts: Sequence[Parts]
    merged: Tensor | None = None


class Vectors:
    """The tensors that the tasks share with their base, and how far each task has moved them.

    Args:
        base: what the models were fine-tuned from.
        models: task -> model.
        names: of the shared tensors, each of one shape in all models.
    """

    def __init__(self, base: Weights, models: Mapping[str, Weights], names: Sequence[str]) -> None:
        self.base, self.models, self.names, self.tasks = base, dict(models), list(names), list(models)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.base.shape(name))

    def elements(self, name: str) -> int:
        return math.prod(self.shape(name))

    def below(self, name: str) -> Tensor:
        """The base's tensor as it is stored."""
        return self.base.read(name, 0, self.elements(name)).view(self.shape(name))

    def model(self, task: str, name: str) -> Tensor:
        """A task's tensor in the base's type."""
        found = self.models[task].read(name, 0, self.elements(name))
        return found.view(self.shape(name)).to(self.base.dtype(name))

    def whole(self, name: str) -> Packed:
        """A tensor that a kind keeps as each task has it, under the name WHOLE."""
        return Packed([{WHOLE: self.model(task, name)} for task in self.tasks])

    def share(self, elements: int) -> float:
        """Of all shared elements, so many."""
        return elements / max(sum(map(self.elements, self.names)), 1)

    def rows(self, name: str) -> Rows:
        """What reads the task vectors of one tensor block by block."""
        sources = [Source(model, name) for model in self.models.values()]
        return Rows(self.tasks, sources, Source(self.base, name), subtracts=True, say_read=lambda elements, size: None)

    def stack(self, name: str) -> Tensor:
        """The task vectors of one tensor, float32 [T, *shape]; NotFinite where one is NaN or infinite."""
        return self.rows(name).read(0, self.elements(name), True)[0].view(len(self.tasks), *self.shape(name))


@runtime_checkable
class Kind(Protocol):
    """How one store keeps its task vectors; made with the Vectors and the kind's parameters, keyword-only.

    `packed` is called once for each shared tensor, in order; `about` after the last.
    """

    def packed(self, name: str) -> Packed: ...

    def about(self) -> list[dict[str, Any]]:
        """Of each task: numbers for people, and what `restored` must know besides the parts."""
        ...

    @staticmethod
    def restored(name: str, below: Tensor, parts: Parts, merged: Tensor | None, about: Mapping[str, Any]) -> Tensor:
        """A task's tensor, in the base's type.

        Args:
            name: of the tensor.
            below: the base's.
            parts, merged: as `packed` gave them.
            about: the kind's parameters, and the task's part of what `about` gave.
        """
        ...
