"""Progressive layered extraction: levels of customised gate control, the shared stream with a gate of its own."""

from collections.abc import Iterable, Mapping
from typing import Literal

from jaxtyping import Float
from pydantic import PositiveInt
from torch import Tensor

from polytask.sharing.cgc import ExpertLevel, ExpertOptions
from polytask.sharing.contract import MakeEncoder, Sharing
from polytask.sharing.layers import Stack


class PLE(Sharing):
    """Several levels of experts; below the last, a shared gate mixes the experts of all tasks for the next level.

    Source: Tang et al. 2020 ("Progressive layered extraction (PLE)", RecSys), its PLE model.
    Departures: the first level reads the encoder's output, where the paper's reads the embedded input; other gates than
    the softmax may be chosen for the tasks.
    Cost: all experts of the levels below the last; there, the shared experts and the named tasks' own.
    """

    class Options(ExpertOptions):
        """Attributes: as described for experts; levels, how many."""

        kind: Literal["ple"] = "ple"
        levels: PositiveInt = 2

    def __init__(self, make_encoder: MakeEncoder, tasks: Iterable[str], options: Options, seed: int = 0) -> None:
        super().__init__(make_encoder, tasks, options, seed)
        tasks = list(tasks)
        self.encoder = make_encoder()
        width, levels = self.encoder.width, []
        for level in range(options.levels):
            passes_on = level + 1 < options.levels
            levels.append(ExpertLevel(f"level.{level}", tasks, width, options, seed, passes_on=passes_on))
            width = options.hidden_sizes[-1]
        self.levels, self.tasks, self.width = Stack(levels), tasks, width
        self.isolated = options.levels == 1

    def representation(self, inputs: Mapping[str, Tensor]) -> Float[Tensor, "B d"]:
        """The encoder's output, which the first level reads."""
        return self.encoder(inputs)

    def features(self, representation: Float[Tensor, "B d"], tasks: list[str]) -> dict[str, Tensor]:
        streams, shared = dict.fromkeys(self.tasks, representation), representation
        for level in self.levels:
            last = level is self.levels[-1]
            streams, shared = level(streams, shared, only=tasks if last else None)
        return streams
