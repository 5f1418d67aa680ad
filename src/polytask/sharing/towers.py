"""Towers: a stack of layers a task, run side by side, for architectures whose tasks exchange what layers give."""

from itertools import pairwise

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
