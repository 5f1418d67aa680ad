"""Grafts: of each task the elements that fine-tuning moved furthest, as it left them; elsewhere the base.

Source      Panigrahi et al. 2023, arXiv:2302.06600: a model with a graft is (1 - mask) * base + mask * fine-tuned.
Departures  the mask holds the elements of largest magnitude of the task vector; the paper learns it on the task's data.
            Of equal magnitudes at the threshold those of the lowest index are kept. What did not move is not stored.
Cost        two passes over the models (`merging.selection`). In the store: the value and two bytes for each kept
            element, and four bytes for each 65,536 elements.
"""

from collections.abc import Mapping
from typing import Annotated, Any

import torch
from torch import Tensor

from polytask.core.constraints import Choice, Interval
from polytask.merging.contract import Pipeline, use_rule, use_transform
from polytask.merging.passes import Piece, measure
from polytask.merging.stages import stages_of
from polytask.merging.stores.contract import Packed, Parts, Vectors

_RUN = 1 << 16  # elements whose places need the low 16 bits only


class Sparse:
    """See above."""

    def __init__(
        self,
        vectors: Vectors,
        *,
        density: Annotated[float, Interval(0, 1, open="left")] = 0.05,
        scope: Annotated[str, Choice("all", "tensor")] = "all",
    ) -> None:
        trim = use_transform("trim", density=density, scope=scope)
        pipeline = Pipeline((trim,), use_rule("task_arithmetic"))  # the rule is never reached
        self._vectors = vectors
        self._pieces = {name: _piece(vectors, pipeline, name) for name in vectors.names}
        self._kept = [0] * len(vectors.tasks)
        measure(list(self._pieces.values()))

    def packed(self, name: str) -> Packed:
        piece = self._pieces.pop(name)
        found: list[list[Tensor]] = [[] for _ in self._kept]
        for block, (start, _) in enumerate(piece.cuts):
            trimmed, _ = piece.reaching(block, 1)
            for places, row in zip(found, trimmed, strict=True):
                places.append(row.nonzero().flatten() + start)
        places = [torch.cat(each) for each in found]
        self._kept = [kept + len(each) for kept, each in zip(self._kept, places, strict=True)]
        parts = []
        for task, own in zip(self._vectors.tasks, places, strict=True):
            counts = torch.bincount(own // _RUN, minlength=-(-self._vectors.elements(name) // _RUN))
            values = self._vectors.model(task, name).flatten()[own]
            parts.append({"counts": counts.to(torch.int32), "places": (own % _RUN).to(torch.uint16), "values": values})
        return Packed(parts)

    def about(self) -> list[dict[str, Any]]:
        elements = max(sum(map(self._vectors.elements, self._vectors.names)), 1)
        return [{"kept": kept / elements} for kept in self._kept]

    @staticmethod
    def restored(name: str, below: Tensor, parts: Parts, merged: Tensor | None, about: Mapping[str, Any]) -> Tensor:
        runs = torch.repeat_interleave(torch.arange(len(parts["counts"])), parts["counts"].long())
        found = below.flatten().clone()
        found[runs * _RUN + parts["places"].long()] = parts["values"]
        return found.view(below.shape)


def _piece(vectors: Vectors, pipeline: Pipeline, name: str) -> Piece:
    shape = vectors.shape(name)
    stages = stages_of(pipeline, vectors.tasks, shape, seed=0, name=name, depth=None)
    return Piece(name, shape, vectors.tasks, stages, vectors.rows(name).read)
