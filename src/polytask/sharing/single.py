"""No sharing: an encoder a task, the baseline that every comparison needs."""

from collections.abc import Iterable, Mapping
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from polytask.core.errors import MissingInput
from polytask.sharing.contract import MakeEncoder, Sharing
from polytask.sharing.layers import TaskModules
from polytask.sharing.spec import SharingOptions


class Single(Sharing):
    """A whole model for each task, side by side.

    Source: the single-task learning that Caruana 1997 compares with.
    Departures: all encoders start from the same values, those that hard sharing would start from at this seed, so that
    a difference between the two at one seed is the sharing's and not the start's.
    Cost: one pass through an encoder for each named task.
    """

    reads = ("vector", "map")

    class Options(SharingOptions):
        """No options."""

        kind: Literal["single"] = "single"

    def __init__(self, make_encoder: MakeEncoder, tasks: Iterable[str], options: Options, seed: int = 0) -> None:
        super().__init__(make_encoder, tasks, options, seed)
        self.encoders = TaskModules()
        for task in tasks:
            encoder = make_encoder()
            self.encoders[task] = encoder
            self.width = encoder.width
        self.shares = len(self.encoders) == 1

    def representation(self, inputs: Mapping[str, Tensor]) -> Float[Tensor, "B width"]:
        """The only task's features; with several tasks nothing is shared."""
        return self.encoders[self._only_task()](inputs)

    def features(self, representation: Float[Tensor, "B width"], tasks: list[str]) -> dict[str, Tensor]:
        self._only_task()
        return dict.fromkeys(tasks, representation)

    def forward(self, inputs: Mapping[str, Tensor], tasks: list[str]) -> dict[str, Tensor]:
        return {task: self.encoders[task](inputs) for task in tasks}

    def _only_task(self) -> str:
        tasks = list(self.encoders)
        if len(tasks) > 1:
            raise MissingInput(
                f"sharing 'single' has no shared representation: {', '.join(tasks)} have an encoder each"
            )
        return tasks[0]
