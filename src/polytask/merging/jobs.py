"""What the plan hands to the driver: for each output tensor where its values come from and what is done with them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from polytask.merging.contract import Pipeline
from polytask.merging.weights.interface import Weights


@dataclass(frozen=True)
class Source:
    """One tensor of one model."""

    weights: Weights
    name: str


@dataclass(frozen=True)
class Take:
    """The tensor is taken over as it is, not merged: the base's where there is one, else the first input's.

    Attributes:
        equal: all sources must hold the same values (a BatchNorm counter, a buffer of positions), or it is an error.
    """

    equal: bool = False


@dataclass(frozen=True)
class TensorJob:
    """One output tensor.

    Attributes:
        name: in the output.
        shape: of the output and of every source.
        dtype: of the output; merged values are rounded to it once.
        inputs: task -> source; the tasks that have this tensor, in order.
        pipeline: what is done, with the parameters that hold for this tensor; or `Take`.
        base: the base model's tensor.
        group: the layer, for what is measured over layers; "" is a layer too.
        depth: place in the model from 0 to 1, for what depends on it; None for what is in no layer.
        masks: task -> numbers that multiply what fine-tuning changed, element by element.
        mask: numbers that multiply what the rule gives.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    inputs: Mapping[str, Source]
    pipeline: Pipeline | Take
    base: Source | None = None
    group: str = ""
    depth: float | None = None
    masks: Mapping[str, Source] = field(default_factory=dict)
    mask: Source | None = None

    @property
    def elements(self) -> int:
        return math.prod(self.shape)
