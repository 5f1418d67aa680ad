"""What a kind of task brings: losses, metrics, how its labels are read, how a model's outputs become predictions.

A kind is one file in `polytask.tasks.labels` and one row here; a kind from outside joins with `KINDS.add(name, kind)`.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from polytask.core.catalogue import Catalogue

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from polytask.core.outputs import OutputSchema
    from polytask.tasks.target import Target
    from polytask.tasks.task import Task

KINDS = Catalogue(
    "kind",
    {
        "binary": "polytask.tasks.labels.binary:KIND",
        "multiclass": "polytask.tasks.labels.multiclass:KIND",
        "multilabel": "polytask.tasks.labels.multilabel:KIND",
        "regression": "polytask.tasks.labels.regression:KIND",
        "segmentation": "polytask.tasks.labels.segmentation:KIND",
        "dense_regression": "polytask.tasks.labels.dense_regression:KIND",
        "ranking": "polytask.tasks.labels.ranking:KIND",
        "boxes": "polytask.tasks.labels.boxes:KIND",
        "surface_normals": "polytask.tasks.labels.surface_normals:KIND",
    },
)


def unchanged(target: "Target", values: "Tensor") -> "Tensor":
    """For kinds whose metrics read outputs and labels as they are."""
    return values


@dataclass(frozen=True)
class Kind:
    """A frame below is a polars DataFrame or a mapping from column to values.

    Attributes:
        losses: names in `polytask.tasks.losses.LOSSES` that a task may choose; the first is the default.
        metrics: names in `polytask.tasks.metrics.METRICS` that a task may choose; the first is the default.
        companions: the metrics that are always reported beside the chosen one.
        fit: (task, frames of the training split, place for messages) -> the fitted Target.
        schema: how many outputs there are, and what they stand for.
        encode: (target, frame, place) -> labels, present (see `polytask.tasks.examples.Batch`).
        decode: (target, outputs on the CPU in float64) -> column -> one value a row.
        options: which of the fields `labels`, `positive`, `at_least` and `classes` of a task this kind reads.
        grouped: whether its tasks need `group_by`.
        to_units: labels or outputs as the metrics read them (regression: in the label's own units), in float64.
    """

    losses: tuple[str, ...]
    metrics: tuple[str, ...]
    companions: tuple[str, ...]
    fit: "Callable[[Task, Iterable[Any], str | None], Target]"
    schema: "Callable[[Target], OutputSchema]"
    encode: "Callable[[Target, Any, str | None], tuple[Tensor, Tensor]]"
    decode: "Callable[[Target, Tensor], dict[str, np.ndarray]]"
    options: tuple[str, ...] = ()
    grouped: bool = False
    to_units: "Callable[[Target, Tensor], Tensor]" = unchanged
