"""What a learned merge sees: the models' vectors, batches of every task, and the model as a function of its weights."""

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from polytask.core.errors import BadValue, MissingInput, NotFinite, UnknownName
from polytask.merging.composing import Composed, Composition, substituted, tensors_of
from polytask.merging.distributions import Outputs, entropy
from polytask.merging.samples import Samples
from polytask.merging.vectors import Vectors


@dataclass(frozen=True)
class MergeSession:
    """The models and a little data, for a function `(session, *, parameters, noise) -> Learned`.

    Attributes:
        vectors: the tensors that are merged.
        samples: the data.
        fixed: other tensors that the merged model has and no task's own: they are put in as they are.
        labels: whether the method declared that it reads labels.
        say: told (steps done, steps in all).
        lean: whether weights are composed layer by layer in every pass, instead of once a step.
        drawn: task -> how many batches were taken.
    """

    vectors: Vectors
    samples: Samples
    fixed: Mapping[str, Tensor] = field(default_factory=dict)
    labels: bool = False
    say: Callable[[int, int], None] = lambda done, total: None
    lean: bool = False
    drawn: dict[str, int] = field(default_factory=dict)
    compositions: list[Composed] = field(default_factory=list)

    def __post_init__(self) -> None:
        for task in self.vectors.tasks:
            if task not in self.samples.tasks:
                raise UnknownName("batches of the task", task, self.samples.tasks, "data of the merge")
            known = tensors_of(self.samples.module(task))
            for name in self.vectors.names:
                if name not in known and self.vectors.has(task, name):
                    raise UnknownName("tensor of the model that reads the data", name, known, f"task {task!r}")

    @property
    def tasks(self) -> list[str]:
        """The models that are merged, in order."""
        return self.vectors.tasks

    def batch(self, task: str, number: int) -> Any:
        """Batch `number` of the task; the same whenever it is asked for."""
        self.drawn[task] = max(self.drawn.get(task, 0), number + 1)
        return self.samples.batch(task, number)

    def batches(self, task: str) -> Iterator[Any]:
        """The task's batches from the first, without end."""
        number = 0
        while True:
            yield self.batch(task, number)
            number += 1

    def composed(self, composition: Composition) -> Composed:
        """The weights of a composition, to be passed as `parameters`."""
        found = Composed(composition, self._like())
        self.compositions.append(found)
        return found

    @contextmanager
    def step(self, through: Collection[Composed] | None = None) -> Iterator[list[Composed]]:
        """While it lasts nothing changes, so the weights are composed once, unless memory is to be lean.

        Args:    through: those whose leaves get gradients; all of them by default.
        Yields:  these, so far as they are held.
        """
        held = [] if self.lean else list(self.compositions)
        for weights in held:
            weights.hold()
        try:
            yield [weights for weights in held if through is None or any(weights is own for own in through)]
        finally:
            for weights in held:
                weights.release()

    def forward(
        self,
        parameters: Mapping[str, Tensor],
        task: str,
        batch: Any,
        *,
        own: Mapping[str, Tensor] | None = None,
        shift: tuple[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """head -> outputs of the task's model for a batch, with these tensors in the place of its own.

        Those that `parameters` does not name are the model's own (a head), or `fixed`. Nothing is changed.

        Args:
            parameters: name -> tensor, or composed weights.
            task, batch: what is passed through which model.
            own: in the place of the model's own, such as a head that is learned.
            shift: (module, what is added to its output).
        """
        module = self.samples.module(task)
        others = {**self.fixed, **own} if own else self.fixed
        with evaluating(module), substituted(module, parameters, others), shifted(module, shift):
            return self.samples.outputs(task, batch)

    def first_layer(self, parameters: Mapping[str, Tensor], task: str, batch: Any) -> tuple[str, Tensor]:
        """(the first module with parameters of its own that a batch passes, its output without a graph)."""
        module = self.samples.module(task)
        seen: list[tuple[str, Any]] = []
        layers = {
            name: layer for name, layer in module.named_modules() if next(layer.parameters(False), None) is not None
        }
        handles = [
            layer.register_forward_hook(lambda layer, inputs, output, name=name: seen.append((name, output)))
            for name, layer in layers.items()
        ]
        try:
            with torch.no_grad():
                self.forward(parameters, task, batch)
        finally:
            for handle in handles:
                handle.remove()
        if not seen or not isinstance(seen[0][1], Tensor):
            found = f"{seen[0][0]!r} gives a {type(seen[0][1]).__name__}" if seen else "none"
            raise BadValue("the first layer", found, "a module that gives a tensor", f"task {task!r}")
        return seen[0]

    def loss(self, task: str, outputs: Mapping[str, Tensor], batch: Any) -> Tensor | None:
        """Mean loss over the batch's labels; None where it has none. MissingInput if the method declared no labels."""
        if not self.labels:
            raise MissingInput("this merge did not declare that it reads labels")
        return self.samples.loss(task, outputs, batch)

    def entropy(self, task: str, outputs: Mapping[str, Tensor]) -> Tensor:
        """Of the predictions, the mean over rows and over the task's heads; BadValue for a head of numbers."""
        return torch.stack([entropy(own, self.labelled(task, head, own)) for head, own in outputs.items()]).mean()

    def trainable(self) -> list[str]:
        """Those of the merged tensors that are parameters of the models; statistics and counters are not."""
        found = {name for task in self.tasks for name, _ in self.samples.module(task).named_parameters()}
        return [name for name in self.vectors.names if name in found]

    def private(self, task: str) -> dict[str, Tensor]:
        """Parameters of the task's model that are not merged, such as its head; the model's own tensors."""
        named = self.samples.module(task).named_parameters()
        return {name: value.detach() for name, value in named if name not in self.vectors.names}

    def kind(self, task: str, head: str, outputs: Tensor) -> Outputs:
        """What a head's outputs are: classes, labels or values."""
        return self.samples.kind(task, head, outputs)

    def labelled(self, task: str, head: str, outputs: Tensor) -> Outputs:
        """The same, of a head whose outputs are a distribution over labels; BadValue for one of numbers."""
        kind = self.kind(task, head, outputs)
        if kind == "values":
            allowed = "classes or labels: this merge reads predicted probabilities, and numbers have none"
            raise BadValue(f"what {head!r} predicts", "values", allowed, f"task {task!r}")
        return kind

    def linear_layers(self) -> dict[str, nn.Linear]:
        """name -> linear layer whose weight is merged, of the tasks' models together."""
        modules = [self.samples.module(task) for task in self.tasks]
        return {
            name: layer
            for module in modules
            for name, layer in module.named_modules()
            if isinstance(layer, nn.Linear) and f"{name}.weight" in self.vectors.names
        }

    def linear_inputs(self, parameters: Mapping[str, Tensor], task: str, batch: Any) -> dict[str, Tensor]:
        """weight's name -> inputs [rows, in] of that linear layer, for every linear layer whose weight is merged.

        Of a sequence every position is a row. NotFinite where the model's outputs are not.
        """
        module = self.samples.module(task)
        found: dict[str, Tensor] = {}
        handles = []
        for name, layer in module.named_modules():
            weight = f"{name}.weight" if name else "weight"
            if isinstance(layer, nn.Linear) and weight in self.vectors.names:
                handles.append(layer.register_forward_pre_hook(partial(_keep, found, weight)))
        try:
            with torch.no_grad():
                require_finite_outputs(self.forward(parameters, task, batch), task)
        finally:
            for handle in handles:
                handle.remove()
        return found

    def _like(self) -> dict[str, Tensor]:
        """name -> the first model's own tensor that has it."""
        found: dict[str, Tensor] = {}
        for task in reversed(self.tasks):
            found |= tensors_of(self.samples.module(task))
        return {name: found[name] for name in self.vectors.names if name in found}


def _keep(found: dict[str, Tensor], weight: str, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    rows = inputs[0].detach().reshape(-1, inputs[0].shape[-1])
    found[weight] = torch.cat([found[weight], rows]) if weight in found else rows


def require_finite(loss: Tensor, task: str, step: int) -> None:
    """NotFinite naming the task and the step."""
    value = float(loss.detach())
    if not math.isfinite(value):
        raise NotFinite(f"the loss of task {task!r} is {value} at step {step} of the merge")


def require_finite_outputs(outputs: Mapping[str, Tensor], task: str) -> None:
    """NotFinite naming the task and the head."""
    for head, values in outputs.items():
        if not bool(values.isfinite().all()):
            raise NotFinite(f"task {task!r}: an output of {head!r} is NaN or infinite")


@contextmanager
def shifted(module: nn.Module, shift: tuple[str, Tensor] | None) -> Iterator[None]:
    """Something is added to the output of one of the module's parts."""
    if shift is None:
        yield
        return
    name, added = shift
    handle = module.get_submodule(name).register_forward_hook(lambda layer, inputs, output: output + added)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """The module and its parts in evaluation mode; their modes are given back."""
    modes = {part: part.training for part in module.modules()}
    try:
        module.eval()
        yield
    finally:
        for part, training in modes.items():
            part.training = training
