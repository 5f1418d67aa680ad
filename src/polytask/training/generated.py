"""A stage's generated labels: an auxiliary head, a network that makes its labels, and the losses of both (maxl)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from polytask.core.constraints import Beginning
from polytask.core.errors import BadValue, Inconsistent, MissingInput, UnknownName
from polytask.core.noise import Noise
from polytask.core.rules import find
from polytask.sharing.label_generator import collapse, focal_loss, masked_softmax
from polytask.sharing.layers import seeded
from polytask.tasks.examples import Batch
from polytask.tasks.target import Target
from polytask.training.spec import StageSpec

_CLASSES = {"binary": 2, "multiclass": None}  # kinds of tasks whose classes can be divided -> how many there are


def generated_names(stage: StageSpec, targets: Mapping[str, Target]) -> list[str]:
    """The tasks that a stage's generator adds: the generated labels, and what keeps them apart.

    Raises: MissingInput or Inconsistent where rule and `generated` do not go together; UnknownName or BadValue for a
            task whose classes cannot be divided.
    """
    where = f"stage {stage.name!r}"
    about = find(stage.rule.kind).parameters.values()
    trains_a_generator = any(isinstance(each.constraint, Beginning) for each in about)
    if stage.rule.generated is None:
        if trains_a_generator:
            what = "`rule: {kind: maxl, generated: {task: ..., classes: ...}}`"
            raise MissingInput(f"{where}: rule {stage.rule.kind!r} trains a generator of labels and needs {what}")
        return []
    if not trains_a_generator:
        raise Inconsistent(f"{where}: generated labels are trained by rule 'maxl', not by {stage.rule.kind!r}")
    if stage.attachments:
        raise Inconsistent(f"{where}: attachments do not go with generated labels")
    task = stage.rule.generated.task
    if task not in targets:
        raise UnknownName("task", task, targets, f"{where}, generated")
    kind = targets[task].task.kind
    if kind not in _CLASSES:
        raise BadValue(f"the kind of task {task!r}", kind, "binary | multiclass: its classes are divided", where)
    return [f"{task}.generated", f"{task}.spread"]


class WithGenerated(nn.Module):
    """A model with the head and the generator beside it, which belong to the stage and are not saved with the model.

    Args:
        model: of the run.
        generator: inputs -> [B, K].
        task: whose classes are divided.
        groups: the number of generated classes in each; K in all.
        seed: of the head's start.
    """

    def __init__(self, model: Any, generator: nn.Module, task: str, groups: Sequence[int], seed: int) -> None:
        super().__init__()
        if not model.sharing.shares:
            raise MissingInput("generated labels: the tasks share no representation; choose another `sharing`")
        self.model, self.generator, self.task = model, generator, task
        with seeded(seed, "generated", task):
            self.auxiliary = nn.Linear(model.sharing.representation_width, sum(groups))

    @property
    def stems(self) -> Any:
        return self.model.stems

    def forward(self, inputs: Mapping[str, Tensor], tasks: Sequence[str], **stem: str) -> dict[str, Tensor]:
        """As the model's; the generator's outputs stand behind the head's, for the loss to make labels of."""
        if self.task not in tasks:  # rows of another source
            return self.model(inputs, tasks, **stem)
        learned = [task for task in tasks if not task.startswith(f"{self.task}.")]
        shared = self.model.representation(inputs, learned, **stem)
        outputs = self.model.from_representation(shared, learned)
        made = self.generator(inputs)
        return {
            **outputs,
            f"{self.task}.generated": torch.cat([self.auxiliary(shared), made], dim=1),
            f"{self.task}.spread": made,
        }

    def own_parameters(self) -> list[nn.Parameter]:
        return [*self.generator.parameters(), *self.auxiliary.parameters()]

    def own_state(self) -> dict[str, Tensor]:
        return {name: tensor for name, tensor in self.state_dict().items() if not name.startswith("model.")}

    def load_own_state(self, values: Mapping[str, Tensor]) -> None:
        self.load_state_dict({**self.state_dict(), **values})


class OneTask(nn.Module):
    """A model's outputs for one task."""

    def __init__(self, model: nn.Module, task: str) -> None:
        super().__init__()
        self.model, self.task = model, task

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        return self.model(inputs, [self.task])[self.task]


@dataclass(frozen=True)
class GeneratedLabels:
    """What a step sees as the target of the generated task: its labels are the classes that are divided."""

    groups: tuple[int, ...]

    def loss(
        self, outputs: Tensor, labels: Tensor, present: Tensor, groups: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        head, made = outputs[present].chunk(2, dim=1)
        count = self.count(labels, present)
        return focal_loss(head, masked_softmax(made, labels[present].long(), self.groups)) * count, count

    def count(self, labels: Tensor, present: Tensor, groups: Tensor | None = None) -> Tensor:
        return present.count_nonzero()


@dataclass(frozen=True)
class Spread:
    """The target of what keeps generated labels apart."""

    groups: tuple[int, ...]

    def loss(
        self, outputs: Tensor, labels: Tensor, present: Tensor, groups: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        count = self.count(labels, present)
        return collapse(masked_softmax(outputs[present], labels[present].long(), self.groups)) * count, count

    def count(self, labels: Tensor, present: Tensor, groups: Tensor | None = None) -> Tensor:
        return present.count_nonzero()


def groups_of(target: Target, classes: int) -> tuple[int, ...]:
    return (classes,) * (_CLASSES[target.task.kind] or target.outputs)


def with_labels(piece: Batch, task: str) -> Batch:
    """A batch in which the generated task and its spread have the labels of the task that is divided."""
    if task not in piece.labels:
        return piece
    names = (f"{task}.generated", f"{task}.spread")
    return replace(
        piece,
        labels={**piece.labels, **dict.fromkeys(names, piece.labels[task])},
        present={**piece.present, **dict.fromkeys(names, piece.present[task])},
    )


def start_of_generator(seed: int) -> int:
    """The seed of a generator's network: another start than the model's."""
    return Noise(seed, "generator").torch_seed()
