"""Towers whose layers are shared by groups of tasks, at each level by other ones; `surgery` finds the groups."""

from collections.abc import Iterable, Mapping
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from polytask.core.errors import BadValue
from polytask.sharing.contract import MakeEncoder, Sharing
from polytask.sharing.groups import group_of
from polytask.sharing.layers import ACTIVATIONS, Activation, NamedModules, Stack, TaskModules, seeded
from polytask.sharing.spec import SharingOptions


class LayerGroups(Sharing):
    """A tower of layers a task above the encoder, where at each level the tasks of a group have one layer.

    Source: Gowda, Zonooz and Arani 2023, arXiv:2305.00441 (MTSL): a network a task at first; layers of tasks that are
    locally alike are replaced by a layer of the group, level by level, between phases of learning.
    Departures: the towers stand above an encoder that is shared from the start (one without hidden layers gives the
    inputs); how groups are found and filled: see `polytask.sharing.surgery`.
    Cost: each group's layer once for every different stream that it reads.
    """

    class Options(SharingOptions):
        """Attributes: hidden_sizes of a tower; groups, for each level name -> its tasks, a task in none being alone;
        None: no level has groups.
        """

        kind: Literal["layer_groups"] = "layer_groups"
        hidden_sizes: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (64, 64)
        activation: Activation = "relu"
        groups: tuple[dict[str, tuple[str, ...]], ...] | None = None

    def __init__(self, make_encoder: MakeEncoder, tasks: Iterable[str], options: Options, seed: int = 0) -> None:
        super().__init__(make_encoder, tasks, options, seed)
        tasks, sizes = list(tasks), options.hidden_sizes
        groups = options.groups or ({},) * len(sizes)
        if len(groups) != len(sizes):
            raise BadValue(
                "sharing 'layer_groups': levels of groups", len(groups), f"that of hidden_sizes, {len(sizes)}"
            )
        self.group_of = [group_of(level, tasks, options.kind, alone=True) for level in groups]
        self.encoder, self.width = make_encoder(), sizes[-1]
        self.activation = ACTIVATIONS[options.activation]()
        self.levels: Stack[NamedModules[nn.Linear]] = Stack()
        for number, (width, size, of) in enumerate(
            zip((self.encoder.width, *sizes[:-1]), sizes, self.group_of, strict=True)
        ):
            layers: NamedModules[nn.Linear] = NamedModules() if groups[number] else TaskModules()
            for group in dict.fromkeys(of.values()):
                with seeded(seed, f"level.{number}", group):
                    layers[group] = nn.Linear(width, size)
            self.levels.append(layers)

    def representation(self, inputs: Mapping[str, Tensor]) -> Float[Tensor, "B d"]:
        """The encoder's output, which the first layers read."""
        return self.encoder(inputs)

    def features(self, representation: Float[Tensor, "B d"], tasks: list[str]) -> dict[str, Tensor]:
        return self.streams(representation, tasks)[-1]

    def streams(self, representation: Float[Tensor, "B d"], tasks: list[str]) -> list[dict[str, Tensor]]:
        """task -> what it reads, before the first level and after each."""
        paths: dict[str, tuple[str, ...]] = dict.fromkeys(tasks, ())
        found: dict[tuple[str, ...], Tensor] = {(): representation}  # by the groups that a stream has passed
        streams = [dict.fromkeys(tasks, representation)]
        for of, layers in zip(self.group_of, self.levels, strict=True):
            for task in tasks:
                before = paths[task]
                paths[task] = (*before, of[task])
                if paths[task] not in found:
                    found[paths[task]] = self.activation(layers[of[task]](found[before]))
            streams.append({task: found[paths[task]] for task in tasks})
        return streams


def similarity(x: Float[Tensor, "B d"], y: Float[Tensor, "B e"]) -> float:
    """Linear centred kernel alignment of two sets of features of the same rows, 0 to 1.

    Source: Kornblith et al. 2019, arXiv:1905.00414, linear CKA.
    """
    x, y = (each.double() - each.double().mean(0) for each in (x, y))
    scale = torch.linalg.matrix_norm(x.mT @ x) * torch.linalg.matrix_norm(y.mT @ y)
    return 0.0 if scale == 0 else float(torch.linalg.matrix_norm(x.mT @ y) ** 2 / scale)
