"""Task conditioning: layers that all tasks share, and what each task does to what they give."""

from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from pydantic import PositiveInt
from torch import Tensor, nn

from polytask.core.errors import BadValue, MissingInput
from polytask.sharing.contract import MakeEncoder, Sharing
from polytask.sharing.dense.decoders import decoders_for
from polytask.sharing.inner import change_layers, working_for
from polytask.sharing.layers import ACTIVATIONS, Activation, Stack, seeded
from polytask.sharing.spec import SharingOptions


class ConditionedOptions(SharingOptions):
    """Attributes: hidden_sizes of the shared layers above the encoder, the last is the width that the heads read;
    activation; inner, patterns of the names of the encoder's own layers whose outputs a task changes too.
    """

    hidden_sizes: tuple[PositiveInt, ...] = (64, 64)
    activation: Activation = "relu"
    inner: tuple[str, ...] = ()


class Conditioned(Sharing):
    """h_l = activation(c_tl(W_l h_(l-1) + b_l)), c_tl what the task makes of the layer's output; the outputs x of the
    encoder's own layers that `inner` names become c_tl(x) in the same way, and then the encoder runs once a task.

    A subclass has what it needs of each task for each of `widths`, and says `conditioned`, abstract here, and
    `condition`. With `on_output` it also acts on what the encoder gives, h_0 = c_t0(z).
    Cost: the first shared layer once for any number of tasks, the others once for each named task; with `inner` the
    encoder and all layers once for each named task.

    Attributes:
        widths: channels of the places where a task acts: of the encoder's output, where it acts there, of the shared
            layers, then of those inside the encoder.
    """

    reads = ("vector", "map", "pyramid")
    on_output: bool = False  # whether a task acts on the encoder's output, a vector or a map, too

    def __init__(
        self, make_encoder: MakeEncoder, tasks: Iterable[str], options: ConditionedOptions, seed: int = 0
    ) -> None:
        super().__init__(make_encoder, tasks, options, seed)
        where, sizes = f"sharing {options.kind!r}", options.hidden_sizes
        self.kind, self.encodes_by_task = options.kind, bool(options.inner)
        self.shares = not self.encodes_by_task
        self.encoder = make_encoder()
        self.decoders = decoders_for(self.encoder, tasks, make_encoder.decoder, seed)
        if self.decoders is not None and sizes:
            raise BadValue(f"{where}: hidden_sizes", list(sizes), "[] on a pyramid, whose layers `inner` names")
        self.on_output = self.on_output and self.decoders is None
        if not (sizes or options.inner or self.on_output):
            raise BadValue(f"{where}: hidden_sizes and inner", [], "a shared layer, or a layer of the encoder")
        self.width = self.encoder.width if self.decoders is None else self.decoders.width
        self.widths = [self.width, *sizes] if self.on_output else [*sizes]
        with seeded(seed, "layers"):
            self.layers = Stack(nn.Linear(inputs, outputs) for inputs, outputs in pairwise((self.width, *sizes)))
        self.activation = ACTIVATIONS[options.activation]()
        self.width = (self.width, *sizes)[-1]
        if options.inner:
            reads = f"{where}: inner"
            self.widths += change_layers(self.encoder, options.inner, make_encoder.schema, reads, self._inside)

    def conditioned(self, task: str, place: int, x: Float[Tensor, "*B d"]) -> Float[Tensor, "*B d"]:
        """What the task makes of what the layer at this place of `widths` gives."""
        raise NotImplementedError

    def _inside(self, task: str, number: int, x: Float[Tensor, "*B d"]) -> Float[Tensor, "*B d"]:
        return self.conditioned(task, self.on_output + len(self.layers) + number, x)

    def representation(self, inputs: Mapping[str, Tensor]) -> Float[Tensor, "B d"]:
        """The encoder's output, which the first layer reads; MissingInput where each task has its own."""
        if not self.shares:
            raise MissingInput(f"sharing {self.kind!r} with `inner` runs the encoder once a task: no representation")
        return self.encoder(inputs)

    def features(self, representation: Float[Tensor, "B d"], tasks: list[str]) -> dict[str, Tensor]:
        return self._above([representation], tasks)

    def forward(self, inputs: Mapping[str, Tensor], tasks: list[str]) -> dict[str, Tensor]:
        if self.shares:
            return super().forward(inputs, tasks)
        read: dict[str, Any] = {}
        for task in tasks:
            with working_for(task):
                read[task] = self.encoder(inputs)
        if self.decoders is not None:
            return self.decoders.features(self.decoders(read))
        return self._above([*read.values()], tasks)

    def _above(self, read: list[Tensor], tasks: list[str]) -> dict[str, Tensor]:
        """The shared layers, on what each task reads, or on the one tensor that all read."""
        if self.on_output:
            read = read * len(tasks) if len(read) == 1 else read
            read = [self.conditioned(task, 0, x) for task, x in zip(tasks, read, strict=True)]
        if not self.layers:
            return dict(zip(tasks, read, strict=True))
        x = read[0] if len(read) == 1 else torch.stack(read)
        for place, layer in enumerate(self.layers, start=self.on_output):
            x = layer(x)
            rows = [x] * len(tasks) if x.dim() == read[0].dim() else x.unbind(0)
            x = torch.stack([self.conditioned(task, place, of) for task, of in zip(tasks, rows, strict=True)])
            x = self.activation(x)
        return dict(zip(tasks, x.unbind(0), strict=True))
