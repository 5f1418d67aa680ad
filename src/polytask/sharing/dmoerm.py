"""Two levels of routing: by the task's category to a bank of experts, within which all are used."""

from collections.abc import Iterable, Mapping
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import PositiveInt
from torch import Tensor, nn

from polytask.sharing.contract import MakeEncoder, Sharing
from polytask.sharing.groups import group_of
from polytask.sharing.layers import ACTIVATIONS, Activation, NamedModules, seeded
from polytask.sharing.spec import SharingOptions
from polytask.sharing.tape import note_experts, numbered


class DMoERM(Sharing):
    """A task's group decides which bank of experts it uses; expert e of it gives activation(W z + B_e A_e z), W being
    shared by all and the rest of low rank, and a layer of the group joins them: activation(M [e_1; ...; e_E]).

    Source: Quan 2024, arXiv:2403.01197 (DMoERM): an outer sparse level that routes to a task's category, an inner dense
    one whose low-rank experts, one a capability, are joined by a network.
    Departures: the category is that of the task, in the recipe, and not found by a classifier; experts are low-rank
    changes of one layer and not of a language model, and learn together, not one after the other on labels of their
    capability.
    Cost: W once; for each named task's group 2 E rank width + E width^2 a row.
    """

    class Options(SharingOptions):
        """Attributes: groups, name -> its tasks (None: one of all); experts of a group; rank of an expert; width."""

        kind: Literal["dmoerm"] = "dmoerm"
        groups: dict[str, tuple[str, ...]] | None = None
        experts: PositiveInt = 4
        rank: PositiveInt = 8
        width: PositiveInt = 64
        activation: Activation = "relu"

    def __init__(self, make_encoder: MakeEncoder, tasks: Iterable[str], options: Options, seed: int = 0) -> None:
        super().__init__(make_encoder, tasks, options, seed)
        self.group_of = group_of(options.groups, list(tasks), options.kind)
        self.encoder, self.width = make_encoder(), options.width
        self.activation = ACTIVATIONS[options.activation]()
        with seeded(seed, "base"):
            self.base = nn.Linear(self.encoder.width, options.width)
        self.groups: NamedModules[Capabilities] = NamedModules()
        for group in dict.fromkeys(self.group_of.values()):
            with seeded(seed, "group", group):
                self.groups[group] = Capabilities(self.encoder.width, options)

    def representation(self, inputs: Mapping[str, Tensor]) -> Float[Tensor, "B d"]:
        """The encoder's output, which all experts read."""
        return self.encoder(inputs)

    def features(self, representation: Float[Tensor, "B d"], tasks: list[str]) -> dict[str, Tensor]:
        base = self.base(representation)
        found: dict[str, Tensor] = {}
        for group in dict.fromkeys(self.group_of[task] for task in tasks):
            experts = self.activation(base + self.groups[group](representation))  # [E, B, width]
            note_experts("experts", numbered(group, len(experts)), experts)
            found[group] = self.activation(self.groups[group].join(experts.transpose(0, 1).flatten(1)))
        return {task: found[self.group_of[task]] for task in tasks}


class Capabilities(nn.Module):
    """The low-rank experts of a group, and the layer that joins them."""

    def __init__(self, width: int, options: DMoERM.Options) -> None:
        super().__init__()
        experts, rank = options.experts, options.rank
        self.down = nn.Parameter(torch.randn(experts, rank, width) / width**0.5)
        self.up = nn.Parameter(torch.randn(experts, options.width, rank) / rank**0.5 * 0.1)
        self.join = nn.Linear(experts * options.width, options.width)

    def forward(self, z: Float[Tensor, "B d"]) -> Float[Tensor, "E B width"]:
        return (z @ self.down.mT) @ self.up.mT
