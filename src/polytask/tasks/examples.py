"""Rows in memory, ready for a model: inputs, labels and which labels exist."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Ragged:
    """Rows of different length packed end to end: row i is `values[offsets[i]:offsets[i + 1]]`.

    Attributes:
        values: [total, *shape].
        offsets: int64 [N + 1], the first is 0.
        fill: what pads a batch.
    """

    values: Tensor
    offsets: Tensor
    fill: float = 0

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def padded(self, index: Tensor) -> Tensor:
        """The rows `index` as one [B, longest, *shape] tensor."""
        starts, lengths = self.offsets[index], self.offsets[index + 1] - self.offsets[index]
        longest = int(lengths.max()) if len(index) else 0
        column = torch.arange(longest)
        inside = column < lengths[:, None]  # [B, longest]
        batch = self.values.new_full((len(index), longest, *self.values.shape[1:]), self.fill)
        batch[inside] = self.values[(starts[:, None] + column)[inside]]
        return batch


@dataclass(frozen=True)
class Batch:
    """Some rows of one source.

    Attributes:
        inputs: see `polytask.core.inputs`.
        labels: task -> [B] (float32 for binary and regression, int64 for multiclass) or [B, L] (multilabel, float32);
            where a label is absent the value is 0 and must not be read.
        present: task -> bool tensor of the same shape as the labels; True where a label exists.
        rows: int64 [B], row numbers in the source, for messages.
        source: name of the source.
        groups: task -> int64 [B], equal where rows belong together, for the tasks that have `group_by`.
    """

    inputs: dict[str, Tensor]
    labels: dict[str, Tensor]
    present: dict[str, Tensor]
    rows: Tensor
    source: str
    groups: dict[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.rows)

    def to(self, device: torch.device | str) -> "Batch":
        def moved(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {key: tensor.to(device, non_blocking=True) for key, tensor in tensors.items()}

        fields = {name: moved(getattr(self, name)) for name in ("inputs", "labels", "present", "groups")}
        return replace(self, **fields)

    def part(self, rank: int, world: int) -> "Batch":
        """The rows rank, rank + world, ... of this batch: one process's part of a global batch."""
        if world == 1:
            return self
        return self.at(slice(rank, None, world))

    def at(self, index: Tensor | slice) -> "Batch":
        """The rows at these positions."""

        def taken(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {key: tensor[index] for key, tensor in tensors.items()}

        return replace(
            self,
            inputs=taken(self.inputs),
            labels=taken(self.labels),
            present=taken(self.present),
            groups=taken(self.groups),
            rows=self.rows[index],
        )


@dataclass(frozen=True)
class Examples:
    """One split of one source, in memory. Fields as in `Batch`, for all rows; token ids may be `Ragged`."""

    inputs: dict[str, Tensor | Ragged]
    labels: dict[str, Tensor]
    present: dict[str, Tensor]
    rows: Tensor
    source: str
    groups: dict[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, index: Tensor | np.ndarray) -> Batch:
        """The rows at these positions (0 ... len - 1)."""
        positions = torch.as_tensor(index)

        def chosen(tensors: Mapping[str, Tensor | Ragged]) -> dict[str, Tensor]:
            # index_select takes a third of the time of tensor[index]
            return {
                key: x.padded(positions) if isinstance(x, Ragged) else x.index_select(0, positions)
                for key, x in tensors.items()
            }

        return Batch(
            inputs=chosen(self.inputs),
            labels=chosen(self.labels),
            present=chosen(self.present),
            groups=chosen(self.groups),
            rows=self.rows.index_select(0, positions),
            source=self.source,
        )

    def with_inputs(self, inputs: dict[str, Tensor | Ragged]) -> "Examples":
        return replace(self, inputs=inputs)
