"""Hard parameter sharing: one encoder for all tasks."""

from collections.abc import Iterable, Mapping
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from polytask.sharing.contract import MakeEncoder, Sharing
from polytask.sharing.spec import SharingOptions


class Hard(Sharing):
    """Every task's head reads the same features.

    Source: Caruana 1997 ("Multitask learning", Machine Learning 28), section 2.
    Departures: none.
    Cost: one pass through the encoder for any number of tasks.
    """

    reads = ("vector", "map")

    class Options(SharingOptions):
        """No options."""

        kind: Literal["hard"] = "hard"

    def __init__(self, make_encoder: MakeEncoder, tasks: Iterable[str], options: Options, seed: int = 0) -> None:
        super().__init__(make_encoder, tasks, options, seed)
        self.encoder = make_encoder()
        self.width = self.encoder.width

    def representation(self, inputs: Mapping[str, Tensor]) -> Float[Tensor, "B width"]:
        return self.encoder(inputs)

    def features(self, representation: Float[Tensor, "B width"], tasks: list[str]) -> dict[str, Tensor]:
        return dict.fromkeys(tasks, representation)
