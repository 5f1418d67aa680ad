"""Channel masks over an ordered index: neighbours among the tasks use nearly the same channels."""

from collections.abc import Iterable, Mapping
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from polytask.core.errors import BadValue, UnknownName
from polytask.sharing.conditioning import Conditioned, ConditionedOptions
from polytask.sharing.contract import MakeEncoder
from polytask.sharing.layers import Stack, TaskModules


class ChannelMasks(Conditioned):
    """In each shared layer of C channels a task uses a window of C_on = floor(active C) channels; it starts at channel
    round((C - C_on) p_t^exponent), p_t in [0, 1] the task's place in their order.

    Source: Park et al. 2024, arXiv:2310.07138 (DTR): masks that slide over the channels with the timestep, more slowly
    at first.
    Departures: tasks take the place of timesteps, and layers that of residual blocks; the formula and its exponent 4
    are those of public code that builds on DTR, since the paper's equations were not at hand.
    Cost: that of the shared layers; no parameter.
    """

    class Options(ConditionedOptions):
        """Attributes: active, the share of channels that a task uses; exponent; order, task -> number (a timestep, a
        horizon, an age); None is the order of the tasks in the recipe.
        """

        kind: Literal["channel_masks"] = "channel_masks"
        active: float = Field(default=0.8, gt=0, le=1)
        exponent: float = Field(default=4.0, gt=0)
        order: dict[str, float] | None = None

    def __init__(self, make_encoder: MakeEncoder, tasks: Iterable[str], options: Options, seed: int = 0) -> None:
        super().__init__(make_encoder, tasks, options, seed)
        tasks = list(tasks)
        for size in self.widths:
            if int(options.active * size) < 1:
                raise BadValue("sharing 'channel_masks': active", options.active, f"at least one of {size} channels")
        places = places_in_order(tasks, options.order)
        self.masks: TaskModules[Stack[Mask]] = TaskModules()
        for task in tasks:
            windows = (window(size, places[task], options.active, options.exponent) for size in self.widths)
            self.masks[task] = Stack(Mask(found) for found in windows)

    def conditioned(self, task: str, place: int, x: Float[Tensor, "*B d"]) -> Float[Tensor, "*B d"]:
        return self.masks[task][place](x)

    def condition(self, task: str) -> str:
        windows = [(len(mask.on), mask.on.nonzero().flatten().tolist()) for mask in self.masks[task]]
        return ", ".join(f"channels {on[0] + 1} to {on[-1] + 1} of {channels}" for channels, on in windows)


class Mask(nn.Module):
    """Channels that are on; kept in checkpoints, so that tasks that come or go move nobody's window."""

    on: Tensor

    def __init__(self, on: Float[Tensor, "d"]) -> None:
        super().__init__()
        self.register_buffer("on", on)

    def forward(self, x: Float[Tensor, "*B d"]) -> Float[Tensor, "*B d"]:
        return x * self.on.to(x.dtype)


def window(channels: int, place: float, active: float, exponent: float) -> Float[Tensor, "channels"]:
    """1 for the channels of the task at this place, else 0.

    >>> window(5, 0.5, 0.6, 1.0).tolist()
    [0.0, 1.0, 1.0, 1.0, 0.0]
    """
    width = int(active * channels)
    first = round((channels - width) * place**exponent)
    on = torch.zeros(channels)
    on[first : first + width] = 1
    return on


def places_in_order(tasks: list[str], order: Mapping[str, float] | None) -> dict[str, float]:
    """task -> its place in [0, 1]; UnknownName for a task that the order lacks."""
    if order is None:
        return {task: number / max(len(tasks) - 1, 1) for number, task in enumerate(tasks)}
    for task in tasks:
        if task not in order:
            raise UnknownName("task", task, order, "order of channel_masks")
    low, high = min(order.values()), max(order.values())  # of all tasks: a part of them keeps its places
    return {task: (order[task] - low) / ((high - low) or 1.0) for task in tasks}
