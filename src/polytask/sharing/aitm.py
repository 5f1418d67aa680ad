"""Adaptive information transfer: in an order of tasks each reads what the one before it has found."""

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from polytask.core.errors import BadValue, UnknownName
from polytask.sharing.contract import MakeEncoder, Sharing
from polytask.sharing.layers import Activation, TaskModules, dense_layers, seeded
from polytask.sharing.spec import SharingOptions
from polytask.sharing.tape import note_penalty


class AITM(Sharing):
    """q_t = tower_t(z); the first task reads q_1, each later one z_t = attention over what the task before passes on,
    p = g(z_(t-1)), and its own q_t. The calibrator's term asks that no step be more probable than the one before it:
    `calibrator` times the mean of max(y_t - y_(t-1), 0) is added to the loss of step t.

    Source: Xi et al. 2021, arXiv:2105.08489 (AITM): its adaptive information transfer module, weights softmax over u in
    {p, q} of <h2(u), h3(u)> / sqrt(width), values h1(u), and its behavioural expectation calibrator (0.6 there).
    Departures: the towers read the encoder's output, where the paper's read the embedded input; the calibrator is off
    unless asked for, since it means something for binary tasks only. Each step has an attention of its own.
    Cost: the towers of the named tasks and of all before them, and 6 width^2 multiply-adds a step that is read (three
    matrices for each of two vectors) and 1 for what is passed on.
    """

    isolated = False

    class Options(SharingOptions):
        """Attributes: hidden_sizes of a tower; order of the tasks, each reading the one before it (by default the
        recipe's); calibrator, the factor of its term.
        """

        kind: Literal["aitm"] = "aitm"
        hidden_sizes: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (64,)
        activation: Activation = "relu"
        order: tuple[str, ...] | None = None
        calibrator: float = Field(default=0.0, ge=0)

    def __init__(self, make_encoder: MakeEncoder, tasks: Iterable[str], options: Options, seed: int = 0) -> None:
        super().__init__(make_encoder, tasks, options, seed)
        self.order, self.calibrator = _ordered(options.order, list(tasks)), options.calibrator
        self.encoder = make_encoder()
        self.width = options.hidden_sizes[-1]
        self.towers: TaskModules[nn.Sequential] = TaskModules()
        self.transfers: TaskModules[Transfer] = TaskModules()
        for place, task in enumerate(self.order):
            with seeded(seed, "tower", task):
                self.towers[task] = dense_layers(
                    self.encoder.width, options.hidden_sizes, activation=options.activation
                )
            if place:
                with seeded(seed, "transfer", task):
                    self.transfers[task] = Transfer(self.width, options.activation)

    def representation(self, inputs: Mapping[str, Tensor]) -> Float[Tensor, "B d"]:
        """The encoder's output, which every tower reads."""
        return self.encoder(inputs)

    def read_by(self, task: str, tasks: Sequence[str]) -> list[str]:
        """The tasks up to this one in the order."""
        return self.order[: self.order.index(task) + 1]

    def features(self, representation: Float[Tensor, "B d"], tasks: list[str]) -> dict[str, Tensor]:
        last = max(self.order.index(task) for task in tasks)
        streams: dict[str, Tensor] = {}
        for place, task in enumerate(self.order[: last + 1]):
            own = self.towers[task](representation)
            streams[task] = self.transfers[task](streams[self.order[place - 1]], own) if place else own
        return {task: streams[task] for task in tasks}

    def note_outputs(self, outputs: Mapping[str, Tensor]) -> None:
        """The calibrator's terms, of the pairs of steps that are both there."""
        if not self.calibrator:
            return
        for before, after in pairwise(self.order):
            if before in outputs and after in outputs:
                self._check(before, outputs[before])
                self._check(after, outputs[after])
                above = outputs[after].float().sigmoid() - outputs[before].float().sigmoid()
                note_penalty(after, self.calibrator * above.clamp(min=0).mean())

    def _check(self, task: str, output: Tensor) -> None:
        if output.dim() != 1:
            allowed = "one output a row: the calibrator compares probabilities of binary tasks"
            raise BadValue(f"sharing 'aitm': the outputs of task {task!r}", list(output.shape), allowed)


class Transfer(nn.Module):
    """What a step makes of the one before it and of its own tower."""

    def __init__(self, width: int, activation: Activation) -> None:
        super().__init__()
        self.passed_on = dense_layers(width, (width,), activation=activation)
        self.values, self.keys, self.queries = (nn.Linear(width, width) for _ in range(3))

    def forward(self, before: Float[Tensor, "B d"], own: Float[Tensor, "B d"]) -> Float[Tensor, "B d"]:
        both = torch.stack([self.passed_on(before), own], dim=1)  # [B, 2, d]
        scores = (self.keys(both) * self.queries(both)).sum(-1) / math.sqrt(both.shape[-1])
        return (scores.softmax(1).unsqueeze(-1).to(both.dtype) * self.values(both)).sum(1)


def _ordered(order: tuple[str, ...] | None, tasks: list[str]) -> list[str]:
    """The tasks of the model in the order given; an error unless each is there once."""
    if order is None:
        return tasks
    for task in tasks:
        if order.count(task) != 1:
            if task not in order:
                raise UnknownName("task", task, order, "order of aitm")
            raise BadValue("sharing 'aitm': order", list(order), f"{task!r} once")
    return [task for task in order if task in tasks]  # a part of the tasks keeps their order
