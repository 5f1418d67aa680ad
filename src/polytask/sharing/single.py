"""No sharing: an encoder a task, the baseline that every comparison needs."""

from collections.abc import Iterable, Mapping
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from polytask.core.errors import MissingInput
from polytask.sharing.contract import MakeEncoder, Sharing
from polytask.sharing.dense.decoders import decoders_for
from polytask.sharing.encoders.contract import Encoder
from polytask.sharing.encoders.levels import packed, unpacked
from polytask.sharing.layers import TaskModules
from polytask.sharing.spec import SharingOptions


class Single(Sharing):
    """A whole model for each task, side by side.

    Source: the single-task learning that Caruana 1997 compares with.
    Departures: all encoders start from the same values, those that hard sharing would start from at this seed, so that
    a difference between the two at one seed is the sharing's and not the start's.
    Cost: one pass through an encoder for each named task.
    """

    reads = ("vector", "map", "pyramid")

    class Options(SharingOptions):
        """No options."""

        kind: Literal["single"] = "single"

    def __init__(self, make_encoder: MakeEncoder, tasks: Iterable[str], options: Options, seed: int = 0) -> None:
        super().__init__(make_encoder, tasks, options, seed)
        self.encoders: TaskModules[Encoder] = TaskModules()
        for task in tasks:
            self.encoders[task] = make_encoder()
        first = next(iter(self.encoders.values()))
        self.decoders = decoders_for(first, tasks, make_encoder.decoder, seed)
        self.width = first.width if self.decoders is None else self.decoders.width
        self.shares = len(self.encoders) == 1

    @property
    def representation_width(self) -> int:
        return next(iter(self.encoders.values())).width

    def representation(self, inputs: Mapping[str, Tensor]) -> Float[Tensor, "B width"]:
        """The only task's features, or all maps of its pyramid; with several tasks nothing is shared."""
        read = self.encoders[self._only_task()](inputs)
        return read if self.decoders is None else packed(read)

    def features(self, representation: Float[Tensor, "B width"], tasks: list[str]) -> dict[str, Tensor]:
        self._only_task()
        if self.decoders is None:
            return dict.fromkeys(tasks, representation)
        levels = unpacked(representation, self.decoders.shapes)
        return self.decoders.features(self.decoders(dict.fromkeys(tasks, levels)))

    def forward(self, inputs: Mapping[str, Tensor], tasks: list[str]) -> dict[str, Tensor]:
        read = {task: self.encoders[task](inputs) for task in tasks}
        return read if self.decoders is None else self.decoders.features(self.decoders(read))

    def _only_task(self) -> str:
        tasks = list(self.encoders)
        if len(tasks) > 1:
            raise MissingInput(
                f"sharing 'single' has no shared representation: {', '.join(tasks)} have an encoder each"
            )
        return tasks[0]
