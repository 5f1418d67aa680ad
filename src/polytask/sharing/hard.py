"""Hard parameter sharing: one encoder for all tasks."""

from collections.abc import Iterable, Mapping
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from polytask.sharing.contract import MakeEncoder, Sharing
from polytask.sharing.dense.decoders import decoders_for
from polytask.sharing.encoders.levels import packed, unpacked
from polytask.sharing.spec import SharingOptions


class Hard(Sharing):
    """Every task's head reads the same features; where the encoder gives a pyramid, its decoder reads the same maps.

    Source: Caruana 1997 ("Multitask learning", Machine Learning 28), section 2.
    Departures: none.
    Cost: one pass through the encoder for any number of tasks, and on a pyramid one through each named task's decoder.
    """

    reads = ("vector", "map", "pyramid")

    class Options(SharingOptions):
        """No options."""

        kind: Literal["hard"] = "hard"

    def __init__(self, make_encoder: MakeEncoder, tasks: Iterable[str], options: Options, seed: int = 0) -> None:
        super().__init__(make_encoder, tasks, options, seed)
        self.encoder = make_encoder()
        self.decoders = decoders_for(self.encoder, tasks, make_encoder.decoder, seed)
        self.width = self.encoder.width if self.decoders is None else self.decoders.width

    def representation(self, inputs: Mapping[str, Tensor]) -> Float[Tensor, "B width"]:
        """The encoder's output, or all maps of its pyramid, one after the other."""
        read = self.encoder(inputs)
        return read if self.decoders is None else packed(read)

    def features(self, representation: Float[Tensor, "B width"], tasks: list[str]) -> dict[str, Tensor]:
        if self.decoders is None:
            return dict.fromkeys(tasks, representation)
        return self.decoders.features(
            self.decoders(dict.fromkeys(tasks, unpacked(representation, self.decoders.shapes)))
        )
