"""Towers: a stack of layers a task, run side by side, for architectures whose tasks exchange what layers give."""

from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from polytask.sharing.experts import Experts, run_together
from polytask.sharing.layers import Activation, Stack, TaskModules, seeded


class TowerLevel(nn.Module):
    """One layer of every task's tower: linear and activation."""

    def __init__(self, name: str, tasks: list[str], width: int, size: int, activation: Activation, seed: int) -> None:
        super().__init__()
        self.layers: TaskModules[Experts] = TaskModules()
        for task in tasks:
            with seeded(seed, name, task):
                self.layers[task] = Experts(1, width, (size,), activation=activation)

    def forward(self, streams: Float[Tensor, "B d"] | Float[Tensor, "T B d"]) -> Float[Tensor, "T B size"]:
        """What each task's layer makes of its stream, or all of them of the one stream that there is."""
        return run_together(list(self.layers.values()), streams)


def tower_levels(
    tasks: list[str], width: int, hidden_sizes: tuple[int, ...], activation: Activation, seed: int
) -> Stack[TowerLevel]:
    """The levels of towers with these layers, a level for all tasks."""
    return Stack(
        TowerLevel(f"tower.{level}", tasks, inputs, outputs, activation, seed)
        for level, (inputs, outputs) in enumerate(pairwise((width, *hidden_sizes)))
    )


def exchanged(
    levels: Stack[TowerLevel], exchanges: nn.ModuleList, x: Float[Tensor, "B d"], tasks: list[str], named: list[str]
) -> dict[str, Tensor]:
    """{named task: features}: after each level of the towers of `tasks` an exchange, at the last only the named ones'.

    Args:
        exchanges: of each level, (streams [T, B, d], rows or None) -> the new streams of all tasks, or of those rows.
        x: what every tower reads.
    """
    streams: Tensor = x
    rows = [tasks.index(task) for task in named]
    for level, exchange in zip(levels, exchanges, strict=True):
        streams = exchange(level(streams), rows if level is levels[-1] else None)
    return dict(zip(named, streams.unbind(0), strict=True))


def shares(tasks: int, own: float) -> Float[Tensor, "T T"]:
    """What each task keeps of itself at the start, `own`; the rest is divided among the others."""
    return torch.full((tasks, tasks), (1 - own) / max(tasks - 1, 1)).fill_diagonal_(own if tasks > 1 else 1.0)
