"""What architectures on a pyramid have in common; and, where each task has a decoder, the slots around those."""

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, cast

from jaxtyping import Float
from torch import Tensor, nn

from polytask.sharing.contract import MakeEncoder, Sharing
from polytask.sharing.dense.decoders import Decoder, Decoders
from polytask.sharing.encoders.levels import Levels, packed, unpacked
from polytask.sharing.spec import DecoderSpec, SharingOptions


class PyramidSharing(Sharing):
    """Image -> pyramid -> {task: what its head reads}; a subclass has `decoded`, abstract here."""

    reads: ClassVar[tuple[str, ...]] = ("pyramid",)

    def __init__(self, make_encoder: MakeEncoder, tasks: Iterable[str], options: SharingOptions, seed: int = 0) -> None:
        super().__init__(make_encoder, tasks, options, seed)
        self.tasks = list(tasks)
        self.encoder = make_encoder()

    def decoded(self, levels: Levels, tasks: list[str]) -> dict[str, Tensor]:
        """{task: [B, H, W, width], or [B, width] where its outputs are a row's}, from the maps of the pyramid."""
        raise NotImplementedError

    def representation(self, inputs: Mapping[str, Tensor]) -> Float[Tensor, "B d"]:
        """All maps of the pyramid, one after the other."""
        return packed(self._levels(inputs))

    def features(self, representation: Float[Tensor, "B d"], tasks: list[str]) -> dict[str, Tensor]:
        return self.decoded(unpacked(representation, self.shapes), tasks)

    def forward(self, inputs: Mapping[str, Tensor], tasks: list[str]) -> dict[str, Tensor]:
        return self.decoded(self._levels(inputs), tasks)

    @property
    def shapes(self) -> list[tuple[int, int, int]]:
        """Channels, height and width of the encoder's maps."""
        return list(cast(Any, self.encoder).shapes)

    def _levels(self, inputs: Mapping[str, Tensor]) -> Levels:
        return cast(Levels, self.encoder(inputs))


class Dense(PyramidSharing):
    """Image -> pyramid -> {task: pyramid} -> decoders -> {task: map} -> {task: map} -> heads.

    A subclass fills one of the two slots: `pyramids` before the decoders, `exchange` between the decoders' maps.
    """

    decoder: ClassVar[type[nn.Module]] = Decoder
    decoders: Decoders

    def __init__(self, make_encoder: MakeEncoder, tasks: Iterable[str], options: SharingOptions, seed: int = 0) -> None:
        super().__init__(make_encoder, tasks, options, seed)
        spec = make_encoder.decoder or DecoderSpec()
        self.decoders = Decoders(self.encoder, tasks, spec, seed, self.decoder_channels(options), self.decoder)
        self.width = self.decoders.width

    def decoder_channels(self, options: SharingOptions) -> list[int]:
        """Of the levels that a decoder reads: those of the encoder, unless `pyramids` gives others."""
        return [shape[0] for shape in self.shapes]

    def pyramids(self, levels: Levels, tasks: list[str]) -> dict[str, Levels]:
        """{task: the levels that its decoder reads}."""
        return dict.fromkeys(tasks, levels)

    def exchange(self, maps: dict[str, Tensor], tasks: list[str]) -> dict[str, Tensor]:
        """{task: map} for the named tasks, from the maps of all tasks (of the named ones, if isolated)."""
        return maps

    def decoded(self, levels: Levels, tasks: list[str]) -> dict[str, Tensor]:
        decoded = tasks if self.isolated else self.tasks
        maps = self.exchange(self.decoders(self.pyramids(levels, decoded)), tasks)
        return self.decoders.features(maps)
