"""Heads that help in training only: they read inner maps of a model's decoders, and are not saved with the model."""

from collections.abc import Mapping

from torch import Tensor, nn

from polytask.sharing.dense.decoders import resized_outputs
from polytask.sharing.layers import Head, NamedModules, TaskModules, seeded
from polytask.sharing.tape import note_guess, noted_features


class AuxiliaryHeads(nn.Module):
    """A head for each place and task, whose losses join the task's (deep supervision).

    Source: Lee et al. 2015, arXiv:1409.5185 (deeply supervised nets): a loss at inner layers.
    Departures: a task's terms are averaged over the places, so that their number does not change the weight.
    Cost: width x outputs multiply-adds an inner pixel; nothing once training is over.

    Args:
        widths: place -> width of the inner maps there.
        outputs: task -> width of its heads.
        weight: of the mean over the places of a task's losses there.
        seed: of the start; a head's depends on its place and task only.
    """

    def __init__(self, widths: Mapping[str, int], outputs: Mapping[str, int], weight: float, seed: int) -> None:
        super().__init__()
        self.weight = weight
        self.places: TaskModules[NamedModules[Head]] = TaskModules()
        for task, number in outputs.items():
            self.places[task] = NamedModules()
            for place, width in widths.items():
                with seeded(seed, "auxiliary", task, place):
                    self.places[task][place] = Head(width, number)

    def forward(self, outputs: Mapping[str, Tensor]) -> None:
        """Notes what the heads make of the maps that the model's pass has noted."""
        noted = noted_features()
        for task, output in outputs.items():
            read = {place: noted[place, task] for place in self.places[task] if (place, task) in noted}
            for place, maps in read.items():
                head = self.places[task][place]
                if output.dim() > 2:
                    guess = resized_outputs(head(maps.movedim(1, -1)), (output.shape[1], output.shape[2]))
                else:  # one label a row
                    guess = head(maps.mean(dim=(2, 3)))
                note_guess(task, self.weight / len(read), guess)
