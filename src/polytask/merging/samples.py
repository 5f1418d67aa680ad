"""The little data that a learned merge reads, and the models that it is passed through; from anywhere."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from polytask.core.errors import BadValue, MissingInput, UnknownName
from polytask.merging.distributions import Outputs, kind_of


@runtime_checkable
class Samples(Protocol):
    """Rows of every task. Whoever has them (a run's directory, a list in memory) also knows the model that reads them.

    A batch is anything. The same number gives the same batch, whatever was asked for before.
    """

    @property
    def tasks(self) -> Sequence[str]: ...

    def module(self, task: str) -> nn.Module:
        """What passes a batch of this task through: the task's own head on the shared part. One module may serve all.

        Its parameters have the names of the tensors that are merged; it is put into evaluation mode meanwhile.
        """
        ...

    def batch(self, task: str, number: int) -> Any:
        """Batch `number` of an endless sequence."""
        ...

    def outputs(self, task: str, batch: Any) -> dict[str, Tensor]:
        """head -> raw outputs of the module for a batch; a task has one head, or several."""
        ...

    def kind(self, task: str, head: str, outputs: Tensor) -> Outputs:
        """What a head's outputs are."""
        ...

    def loss(self, task: str, outputs: Mapping[str, Tensor], batch: Any) -> Tensor | None:
        """The mean loss over the batch's labels, summed over heads, 0-d; None where no label exists in it.

        Raises: MissingInput if there are no labels at all.
        """
        ...

    def facts(self, task: str) -> dict[str, Any]:
        """For people and the card: where the rows are from, `split`, `rows`, `batch_size`; as JSON has them.

        What was measured on rows is read again where these are the same.
        """
        ...


Forward = Callable[[nn.Module, str, Any], Tensor | Mapping[str, Tensor]]
Loss = Callable[[str, Any, Any], Tensor]


@dataclass(frozen=True)
class MemorySamples:
    """Batches in memory; see `samples`."""

    modules: Mapping[str, nn.Module]
    batches: Mapping[str, Sequence[Any]]
    forward: Forward
    loss_of: Loss | None = None
    kinds: Mapping[str, Outputs] = field(default_factory=dict)

    @property
    def tasks(self) -> list[str]:
        return list(self.batches)

    def module(self, task: str) -> nn.Module:
        return self.modules[task]

    def batch(self, task: str, number: int) -> Any:
        own = self.batches[task]
        return own[number % len(own)]

    def outputs(self, task: str, batch: Any) -> dict[str, Tensor]:
        found = self.forward(self.modules[task], task, batch)
        return {task: found} if isinstance(found, Tensor) else dict(found)

    def kind(self, task: str, head: str, outputs: Tensor) -> Outputs:
        return self.kinds.get(head, self.kinds.get(task, kind_of(outputs)))

    def loss(self, task: str, outputs: Mapping[str, Tensor], batch: Any) -> Tensor | None:
        if self.loss_of is None:
            raise MissingInput("this merge reads labels: give loss=, a function (task, outputs, batch) -> 0-d tensor")
        alone = outputs[task] if list(outputs) == [task] else outputs
        return self.loss_of(task, alone, batch)

    def facts(self, task: str) -> dict[str, Any]:
        return {"from": "Python", "split": None, "batches": len(self.batches[task])}


def samples(
    model: nn.Module | Mapping[str, nn.Module],
    batches: Mapping[str, Iterable[Any]],
    *,
    forward: Forward | None = None,
    loss: Loss | None = None,
    outputs: Mapping[str, Outputs] | None = None,
) -> MemorySamples:
    """What `learn` and `polytask.merge(..., samples=...)` take, from any model and any batches.

    Args:
        model: one that serves every task, or task -> model. Of its weights only those count that are not merged, such
            as the head of one task. Nothing of it is changed.
        batches: task -> its batches, with a length (a list, a DataLoader); they are read once and gone through again.
        forward: (model, task, batch) -> the head's outputs, or head -> outputs; by default model(batch).
        loss: (task, outputs, batch) -> mean loss over the labels, for methods that read labels.
        outputs: task (or head) -> classes (logits of one label among C), labels (logits of labels that each hold or
            not) or values; by default by the shape, see `polytask.merging.distributions`.

    Raises:
        MissingInput: a task without a batch.
        UnknownName: a model or a kind of outputs for a task that has no batches.
    """
    tasks = list(batches)
    modules = dict.fromkeys(tasks, model) if isinstance(model, nn.Module) else dict(model)
    for task in tasks:
        if task not in modules:
            raise UnknownName("model of the task", task, modules, "samples")
    for head, kind in (outputs or {}).items():
        if kind not in ("classes", "labels", "values"):
            raise BadValue(f"outputs of {head!r}", kind, "classes, labels or values", "samples")
    listed = {task: _listed(task, own) for task, own in batches.items()}
    return MemorySamples(modules, listed, forward or _plain, loss, dict(outputs or {}))


def _plain(model: nn.Module, task: str, batch: Any) -> Tensor | Mapping[str, Tensor]:
    return model(batch)


def _listed(task: str, batches: Iterable[Any]) -> list[Any]:
    if not hasattr(batches, "__len__"):
        raise BadValue(f"the batches of task {task!r}", type(batches).__name__, "a list or loader with a length")
    found = list(batches)
    if not found:
        raise MissingInput(f"task {task!r}: there is no batch; a merge with data needs at least one of each task")
    return found
