"""The models of a merge by tensor, read when asked for: the base's values, each fine-tune's, and what it changed."""

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from polytask.core.errors import BadValue, MissingInput, UnknownName
from polytask.merging.jobs import Source


class Stored(Mapping[str, Tensor]):
    """Tensors of files by name; nothing is held, a view of the memory map is made at each look."""

    def __init__(self, sources: Mapping[str, Source]) -> None:
        self._sources = dict(sources)

    def __getitem__(self, name: str) -> Tensor:
        source = self._sources[name]
        shape = source.weights.shape(source.name)
        return source.weights.read(source.name, 0, math.prod(shape)).view(shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._sources)

    def __len__(self) -> int:
        return len(self._sources)


class Vectors:
    """What a learned merge combines.

    Args:
        models: task -> its fine-tune's tensors by name; one that a task's model lacks did not change.
        base: the tensors that they were fine-tuned from; None where there is no base.
        names: those that are merged; by default all of the base, else of the first model.

    Values are given in float32, of tensors in float64 in that. None may be written to.
    """

    def __init__(
        self,
        models: Mapping[str, Mapping[str, Tensor]],
        base: Mapping[str, Tensor] | None = None,
        names: list[str] | None = None,
    ) -> None:
        if not models:
            raise BadValue("the number of models to merge", 0, "at least 1")
        self.tasks = list(models)
        self._models, self._base = dict(models), base
        known = next(iter(models.values())) if base is None else base
        self.names = [name for name in known if known[name].is_floating_point()] if names is None else list(names)
        for task, model in models.items():
            self._check(task, model)

    def shape(self, name: str) -> torch.Size:
        return self._known()[name].shape

    def elements(self, name: str) -> int:
        return self.shape(name).numel()

    def has(self, task: str, name: str) -> bool:
        """Whether the task's model has this tensor."""
        return name in self._models[task]

    def base(self, name: str) -> Tensor:
        """The base's values; MissingInput without a base."""
        if self._base is None:
            raise MissingInput("this merge works on what fine-tuning changed: give the base that the models came from")
        return _working(self._base[name])

    def model(self, task: str, name: str) -> Tensor:
        """A fine-tune's values; the base's where it lacks the tensor."""
        return _working(self._models[task][name]) if self.has(task, name) else self.base(name)

    def row(self, task: str, name: str) -> Tensor:
        """Fine-tuned minus base."""
        return self.model(task, name) - self.base(name)

    def expert(self, task: str) -> "Mapping[str, Tensor]":
        """name -> a fine-tune's values, of all that is merged; looked up when asked for."""
        return _Expert(self, task)

    def _known(self) -> Mapping[str, Tensor]:
        return next(iter(self._models.values())) if self._base is None else self._base

    def _check(self, task: str, model: Mapping[str, Tensor]) -> None:
        for name in self.names:
            if name not in model:
                if self._base is None:
                    raise UnknownName("tensor", name, model, f"task {task!r}")
                continue
            found, wanted = tuple(model[name].shape), tuple(self.shape(name))
            if found != wanted:
                raise BadValue(f"the shape of {name!r}", found, f"{wanted}, as in the base", f"task {task!r}")


class _Expert(Mapping[str, Tensor]):
    """One task's values."""

    def __init__(self, vectors: Vectors, task: str) -> None:
        self._vectors, self._task = vectors, task

    def __getitem__(self, name: str) -> Tensor:
        return self._vectors.model(self._task, name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._vectors.names)

    def __len__(self) -> int:
        return len(self._vectors.names)


def _working(values: Tensor) -> Tensor:
    """In the type of arithmetic: float32, but for what is stored in float64."""
    return values if values.dtype in (torch.float32, torch.float64) else values.float()
