"""Shared layers and task decoders whose widths are chosen after training, within a budget and by preference."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch.nn import functional

from polytask.core.errors import BadValue, UnknownName
from polytask.sharing.contract import MakeEncoder, Sharing
from polytask.sharing.layers import ACTIVATIONS, Activation, Stack, TaskModules, seeded
from polytask.sharing.spec import SharingOptions
from polytask.sharing.tape import listening, note_penalty

Share = Annotated[float, Field(gt=0, le=1)]


@dataclass(frozen=True)
class Widths:
    """Attributes: shared, the share of the shared layers' channels; tasks, that of each task's decoder."""

    shared: float
    tasks: Mapping[str, float]


class Slimmable(Sharing):
    """Layers that all tasks share, then a decoder a task, each of which may run with the first part of its channels
    only. In training every pass draws the widths; a penalty draws what narrow shared layers give to what the whole
    ones give (on the channels that both have). `configure` sets the widths to use, `search` finds them.

    Source: Aich, Schulter, Roy-Chowdhury, Chandraker and Suh 2023, arXiv:2308.11744: slimmable encoder and decoders,
    configuration-invariant distillation of the encoder's features, and a search that gives a preferred task's decoder
    more of the budget.
    Departures: the paper's text was not at hand: one configuration a step, where slimmable networks train several; the
    distillation is a squared difference; the search takes the widest shared layers with which every decoder fits. The
    last layer of a decoder keeps its width, so that heads fit.
    Cost: at full width as layers and decoders of that size; a layer of shares a and b costs a b of its whole.
    """

    class Options(SharingOptions):
        """Attributes: hidden_sizes of the shared layers; decoder_sizes of each task's, the last is what heads read;
        shares, those that may be chosen; distillation, the factor of the penalty.
        """

        widths: ClassVar[dict[str, int]] = {"hidden_sizes": 1, "decoder_sizes": 1}
        kind: Literal["slimmable"] = "slimmable"
        hidden_sizes: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (64, 64)
        decoder_sizes: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (64, 64)
        activation: Activation = "relu"
        shares: Annotated[tuple[Share, ...], Field(min_length=1)] = (0.25, 0.5, 0.75, 1.0)
        distillation: float = Field(default=1.0, ge=0)

    def __init__(self, make_encoder: MakeEncoder, tasks: Iterable[str], options: Options, seed: int = 0) -> None:
        super().__init__(make_encoder, tasks, options, seed)
        self.encoder, self.options = make_encoder(), options
        self.width = options.decoder_sizes[-1]
        with seeded(seed, "layers"):
            self.layers = _linear((self.encoder.width, *options.hidden_sizes))
        self.decoders: TaskModules[Stack[nn.Linear]] = TaskModules()
        for task in tasks:
            with seeded(seed, "decoder", task):
                self.decoders[task] = _linear((options.hidden_sizes[-1], *options.decoder_sizes))
        self.activation = ACTIVATIONS[options.activation]()
        self.widths = Widths(1.0, {})  # tasks that are not named use all

    def configure(self, shared: float = 1.0, tasks: Mapping[str, float] | None = None) -> None:
        """Sets the widths that are used outside training; tasks that are not named use all of their decoder."""
        for share in (shared, *(tasks or {}).values()):
            if share not in self.options.shares and share != 1:
                raise BadValue("a width of 'slimmable'", share, f"one of {', '.join(map(str, self.options.shares))}, 1")
        for task in tasks or {}:
            if task not in self.decoders:
                raise UnknownName("task", task, self.decoders.keys(), "configure")
        self.widths = Widths(shared, dict(tasks or {}))

    def search(self, preferences: Mapping[str, float], budget: float) -> Widths:
        """The widths within a share of the whole's multiply-adds: the widest shared layers with which each task's part
        of the rest, by its preference, is enough for its narrowest decoder; then each task's widest that it pays for.

        Raises:
            UnknownName, BadValue: preferences that are not those of the tasks, positive numbers; a budget for which
                no widths are narrow enough.
        """
        for task in preferences:
            if task not in self.decoders:
                raise UnknownName("task", task, self.decoders.keys(), "preferences")
        if set(preferences) != set(self.decoders.keys()) or min(preferences.values()) <= 0:
            allowed = f"a positive number for each of {', '.join(self.decoders)}"
            raise BadValue("preferences", dict(preferences), allowed)
        whole = self.multiply_adds(Widths(1.0, {}))
        total = sum(preferences.values())
        options = sorted({*self.options.shares, 1.0}, reverse=True)
        for shared in options:
            left = budget * whole - self._shared_cost(shared)
            found = {
                task: next(
                    (own for own in options if self._cost(task, shared, own) <= left * preferences[task] / total), None
                )
                for task in self.decoders
            }
            chosen = {task: own for task, own in found.items() if own is not None}
            if len(chosen) == len(found):
                return Widths(shared, chosen)
        least = min(options)
        needed = self.multiply_adds(Widths(least, dict.fromkeys(self.decoders, least))) / whole
        raise BadValue("budget", budget, f"more; the narrowest of all takes {needed:.3f} of the whole's multiply-adds")

    def multiply_adds(self, widths: Widths) -> int:
        """Of a row, above the encoder and without heads, for all tasks."""
        own = sum(self._cost(task, widths.shared, widths.tasks.get(task, 1.0)) for task in self.decoders)
        return self._shared_cost(widths.shared) + own

    def representation(self, inputs: Mapping[str, Tensor]) -> Float[Tensor, "B d"]:
        """The encoder's output, which the shared layers read."""
        return self.encoder(inputs)

    def features(self, representation: Float[Tensor, "B d"], tasks: list[str]) -> dict[str, Tensor]:
        widths = self._drawn(tasks) if self.training else self.widths
        shared = self._through(self.layers, representation, widths.shared)
        if self.training and listening() and self.options.distillation and widths.shared < 1:
            with torch.no_grad():
                whole = self._through(self.layers, representation, 1.0)
            apart = (shared - whole[:, : shared.shape[1]]).square().mean()
            for task in tasks:
                note_penalty(task, self.options.distillation * apart / len(tasks))
        return {
            task: self._through(self.decoders[task], shared, widths.tasks.get(task, 1.0), last=self.width)
            for task in tasks
        }

    def _drawn(self, tasks: list[str]) -> Widths:
        """From torch's generator, as dropout is."""
        options = self.options.shares
        drawn = [options[int(place)] for place in torch.randint(len(options), (1 + len(tasks),))]
        return Widths(drawn[0], dict(zip(tasks, drawn[1:], strict=True)))

    def _through(
        self, layers: Stack[nn.Linear], x: Float[Tensor, "B d"], share: float, last: int | None = None
    ) -> Float[Tensor, "B e"]:
        for size, layer in zip(_sizes(layers, share, last), layers, strict=True):
            x = self.activation(functional.linear(x, layer.weight[:size, : x.shape[1]], layer.bias[:size]))
        return x

    def _shared_cost(self, share: float) -> int:
        return _multiply_adds([self.encoder.width, *_sizes(self.layers, share, None)])

    def _cost(self, task: str, shared: float, own: float) -> int:
        reads = _sizes(self.layers, shared, None)[-1]
        return _multiply_adds([reads, *_sizes(self.decoders[task], own, self.width)])


def _linear(sizes: tuple[int, ...]) -> Stack[nn.Linear]:
    return Stack(nn.Linear(inputs, outputs) for inputs, outputs in pairwise(sizes))


def _sizes(layers: Stack[nn.Linear], share: float, last: int | None) -> list[int]:
    """Channels of each layer at this share, at least one; the last has `last` where it is given."""
    found = [max(1, round(share * layer.out_features)) for layer in layers]
    return found if last is None else [*found[:-1], last]


def _multiply_adds(sizes: list[int]) -> int:
    return sum(inputs * outputs for inputs, outputs in pairwise(sizes))
