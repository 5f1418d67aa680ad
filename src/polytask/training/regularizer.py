"""What keeps a stage's weights near those it begins with: strength / 2 * sum_i F_i (theta_i - start_i)^2.

Source      `l2_sp`: F = 1, Li et al. 2018, arXiv:1802.01483. `fisher`: F is the diagonal Fisher information at the
            start; Porrello et al. 2024, arXiv:2405.16350, whose ITA tunes each task by itself under this penalty so
            that the task vectors can be added up. EWC's penalty, Kirkpatrick et al. 2017, arXiv:1612.00796.
Departures  F is taken on the stage's own training rows: its expectation over labels is exact, each task counts as its
            loss does, by the mean over its labels, and tasks add up. Heads are left out unless they are named; they
            begin at random and are not merged. The paper's IEL, which regularises the composed model of all tasks while
            one of them is tuned, is not here: tuning apart and merging, as `studies.alternating` does, never has that
            model's loss. The papers were to be had only in part.
Cost        a pass over the penalised weights a step, and the start and F beside them, 8 bytes an element. F once: for
            each row a forward pass, and a backward pass for each output of each task.

The penalty is a term of its own, none of the tasks': what a rule sees (losses, Gram matrix, gradients) does not contain
it. Its gradient is added to what the rule has made of the tasks', before `clip` and the optimiser's step.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from polytask.balancing import distribution
from polytask.balancing.accumulation import accumulate
from polytask.core.errors import BadValue, NotFinite
from polytask.merging.distributions import kind_by_loss
from polytask.merging.fisher_information import add_information
from polytask.sharing.stems import named_stem
from polytask.tasks.examples import Batch
from polytask.tasks.mixture import Mixture
from polytask.tasks.target import Target
from polytask.training.devices import Devices
from polytask.training.spec import RegularizerSpec, StageSpec
from polytask.training.trainable import beginning, begins


class Regularizer:
    """The penalty of a stage.

    Args:
        spec: the stage's.
        parameters: by name, those that it holds near the start.
    """

    def __init__(self, spec: RegularizerSpec, parameters: Mapping[str, nn.Parameter]) -> None:
        self.spec, self._parameters = spec, dict(parameters)
        self._start: dict[str, Tensor] = {}
        self._information: dict[str, Tensor] = {}
        self._value = torch.zeros(())

    @property
    def value(self) -> float:
        """Of the penalty, at the weights that its last gradient was taken at."""
        return self._value.item()

    def begin(self, model: Any, mixture: Mixture, targets: Mapping[str, Target], devices: Devices) -> None:
        """Takes the weights as they are now for the start, and measures F there, on the mixture's first rows."""
        self._start = {name: parameter.detach().clone() for name, parameter in self._parameters.items()}
        if self.spec.kind == "fisher":
            rows = list(first_rows(mixture, self.spec.row_count))
            self._information = information(model, self._parameters, rows, targets, devices)

    def add_gradients(self) -> None:
        """Adds the penalty's slope to each parameter's gradient."""
        values = []
        for name, parameter in self._parameters.items():
            moved = parameter.detach() - self._start[name]
            slope = self.spec.strength * moved
            if self._information:
                slope *= self._information[name]
            values.append((slope * moved).sum() / 2)
            accumulate(parameter, slope)
        self._value = torch.stack(values).sum()

    def state_dict(self) -> dict[str, Any]:
        return {"start": self._start, "information": self._information}

    def load_state_dict(self, values: Mapping[str, Mapping[str, Tensor]]) -> None:
        self._start, self._information = (
            {name: tensor.to(self._parameters[name].device) for name, tensor in values[what].items()}
            for what in ("start", "information")
        )


def first_rows(mixture: Mixture, rows: int) -> Iterable[Batch]:
    """The first rows of a mixture's first epoch, or all of them where it has fewer."""
    left = rows
    for pieces in mixture.batches(0):
        for piece in pieces:
            if left == 0:
                return
            yield piece.at(slice(0, left))
            left -= min(left, len(piece))


def information(
    model: Any,
    parameters: Mapping[str, nn.Parameter],
    pieces: Sequence[Batch],
    targets: Mapping[str, Target],
    devices: Devices,
) -> dict[str, Tensor]:
    """name -> the diagonal Fisher information, summed over tasks, of each the mean over its labels in the pieces.

    The model computes as in an evaluation, row by row; several processes share the rows out.

    Raises:
        NotFinite: some of it is not a finite number.
    """
    counts = {
        task: sum(int(piece.present[task].count_nonzero()) for piece in pieces if task in piece.present)
        for task in targets
    }
    sums = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    was_training = model.training
    model.eval()
    try:
        for piece in pieces:
            mine = piece.part(devices.rank, devices.world)
            for number in range(len(mine)):
                row = mine.at(slice(number, number + 1)).to(devices.device)
                tasks = [task for task in targets if task in row.present and bool(row.present[task].any())]
                if not tasks:
                    continue
                outputs = model(row.inputs, tasks, **named_stem(model, row.source))
                for task in tasks:
                    present = outputs[task][row.present[task]]
                    kind, weight = kind_by_loss(targets[task].task.loss), 1 / counts[task]
                    add_information(sums, parameters, present, kind, f"task {task!r}", weight=weight)
    finally:
        model.train(was_training)
    if distribution.active():
        distribution.sum_in_place(list(sums.values()))
    for name, total in sums.items():
        if not bool(total.isfinite().all()):
            raise NotFinite(f"the Fisher information of {name!r} at the stage's start is not finite")
    return sums


def regularizer(
    stage: StageSpec, model: Any, trainable: Mapping[str, nn.Parameter], targets: Mapping[str, Target]
) -> Regularizer | None:
    """The stage's, of those of its parameters that it names; None where there is none, or one of strength 0.

    Raises:
        UnknownName: a beginning that no parameter's name has.
        BadValue: nothing that the stage trains is named; Fisher information of a task whose outputs are maps.
    """
    spec, where = stage.regularizer, f"stage {stage.name!r}: regularizer"
    if spec is None or spec.strength == 0:
        return None
    if spec.parameters is None:
        names = [name for name in trainable if not begins(name, "heads")]
    else:
        names = beginning(model, trainable, spec.parameters, where)
    if not names:
        found = "null" if spec.parameters is None else list(spec.parameters)
        raise BadValue("parameters", found, "beginnings of names that the stage trains; null leaves heads out", where)
    maps = [task for task in model.sharing.map_sizes if task in targets]
    if spec.kind == "fisher" and maps:  # a backward pass for each of their pixels
        raise BadValue("kind", "fisher", f"l2_sp: the outputs of task {maps[0]!r} are maps", where)
    return Regularizer(spec, {name: trainable[name] for name in names})
