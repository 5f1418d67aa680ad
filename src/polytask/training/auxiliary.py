"""Heads that help in training only: they read inner maps of a model's decoders, and are not saved with the model."""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from polytask.sharing.dense.decoders import resized_outputs
from polytask.sharing.layers import Head, NamedModules, TaskModules, seeded
from polytask.sharing.tape import note_guess, noted_features


class WithAuxiliary(nn.Module):
    """A model with a head for each place and task beside it, whose losses join the task's (deep supervision).

    Source: Lee et al. 2015, arXiv:1409.5185 (deeply supervised nets): a loss at inner layers.
    Departures: a task's terms are averaged over the places, so that their number does not change the weight.
    Cost: width x outputs multiply-adds an inner pixel; nothing once training is over.

    Args:
        model: of the run, whose `sharing.auxiliary` says what may be read.
        outputs: task -> width of its heads.
        weight: of the mean over the places of a task's losses there.
        seed: of the start; a head's depends on its place and task only.
    """

    def __init__(self, model: Any, outputs: Mapping[str, int], weight: float, seed: int) -> None:
        super().__init__()
        self.model, self.weight = model, weight
        places: Mapping[str, int] = model.sharing.auxiliary
        self.places: TaskModules[NamedModules[Head]] = TaskModules()
        for task, number in outputs.items():
            self.places[task] = NamedModules()
            for place, width in places.items():
                with seeded(seed, "auxiliary", task, place):
                    self.places[task][place] = Head(width, number)

    @property
    def sharing(self) -> Any:
        return self.model.sharing

    @property
    def stems(self) -> Any:
        return self.model.stems

    def forward(self, inputs: Mapping[str, Tensor], tasks: Iterable[str], **stem: str) -> dict[str, Tensor]:
        return self._with_guesses(self.model(inputs, tasks, **stem))

    def representation(self, inputs: Mapping[str, Tensor], tasks: Iterable[str], **stem: str) -> Tensor:
        return self.model.representation(inputs, tasks, **stem)

    def from_representation(self, representation: Tensor, tasks: Iterable[str]) -> dict[str, Tensor]:
        return self._with_guesses(self.model.from_representation(representation, tasks))

    def own_parameters(self) -> list[nn.Parameter]:
        return list(self.places.parameters())

    def _with_guesses(self, outputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """The outputs, after the heads' own are noted for the tasks' losses."""
        noted = noted_features()
        for task, output in outputs.items():
            read = {place: noted[place, task] for place in self.places[task] if (place, task) in noted}
            for place, maps in read.items():
                guess = self.places[task][place](maps.movedim(1, -1))
                note_guess(task, self.weight / len(read), resized_outputs(guess, (output.shape[1], output.shape[2])))
        return outputs
