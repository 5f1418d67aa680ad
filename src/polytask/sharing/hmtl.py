"""Heads at different depths: simple tasks read low layers, harder ones the layers above."""

from collections.abc import Iterable, Mapping
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import PositiveInt
from torch import Tensor, nn

from polytask.core.errors import BadValue
from polytask.sharing.contract import MakeEncoder, Sharing
from polytask.sharing.layers import ACTIVATIONS, Activation, Stack, seeded
from polytask.sharing.spec import SharingOptions


class HMTL(Sharing):
    """A stack of shared layers; task t reads the output of layer depth_t.

    From the second on a layer reads the encoder's output too (a shortcut).

    Source: Sanh, Wolf and Ruder 2019, arXiv:1811.06031 (HMTL): low-level tasks supervised at the bottom layers, complex
    ones at the top, with shortcuts from the input embeddings to each level.
    Departures: layers are linear with an activation, where the paper's are recurrent; all have one width.
    Cost: the layers up to the deepest of the named tasks, once.
    """

    class Options(SharingOptions):
        """Attributes: layers, of width hidden_size; depths, task -> layer, counted from 1; a task without one reads the
        last; shortcuts, whether layers read the encoder's output too.
        """

        kind: Literal["hmtl"] = "hmtl"
        layers: PositiveInt = 3
        hidden_size: PositiveInt = 64
        activation: Activation = "relu"
        depths: dict[str, PositiveInt] | None = None
        shortcuts: bool = True

    def __init__(self, make_encoder: MakeEncoder, tasks: Iterable[str], options: Options, seed: int = 0) -> None:
        super().__init__(make_encoder, tasks, options, seed)
        self.depths = {task: _depth(task, options) for task in tasks}
        self.encoder, self.shortcuts = make_encoder(), options.shortcuts
        self.width = options.hidden_size
        above = self.width + (self.encoder.width if options.shortcuts else 0)
        with seeded(seed, "layers"):
            inputs = (self.encoder.width, *[above] * (options.layers - 1))
            self.layers = Stack(nn.Linear(of, self.width) for of in inputs)
        self.activation = ACTIVATIONS[options.activation]()

    def representation(self, inputs: Mapping[str, Tensor]) -> Float[Tensor, "B d"]:
        """The encoder's output, which the first layer reads."""
        return self.encoder(inputs)

    def features(self, representation: Float[Tensor, "B d"], tasks: list[str]) -> dict[str, Tensor]:
        x, levels = representation, []
        for number in range(max(self.depths[task] for task in tasks)):
            if number and self.shortcuts:
                x = torch.cat([x, representation], dim=1)
            x = self.activation(self.layers[number](x))
            levels.append(x)
        return {task: levels[self.depths[task] - 1] for task in tasks}


def _depth(task: str, options: HMTL.Options) -> int:
    """The layer that a task reads, from 1."""
    depths = options.depths or {}
    for name, depth in depths.items():
        if depth > options.layers:
            allowed = f"at most the number of layers, {options.layers}"
            raise BadValue(f"sharing 'hmtl': the depth of {name!r}", depth, allowed)
    return depths.get(task, options.layers)
