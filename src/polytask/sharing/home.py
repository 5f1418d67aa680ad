"""Hierarchy of multi-gate experts: for all tasks, for a group, for a task; normalised, and gated at both ends."""

from collections.abc import Iterable, Mapping
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from polytask.sharing.contract import MakeEncoder, Sharing
from polytask.sharing.experts import Experts, mixed
from polytask.sharing.gates import Scores
from polytask.sharing.groups import group_of
from polytask.sharing.layers import Activation, NamedModules, Normalization, TaskModules, seeded
from polytask.sharing.selection import Softmax
from polytask.sharing.spec import SharingOptions
from polytask.sharing.tape import listening, note_experts, note_gate, numbered


class HoME(Sharing):
    """Two levels. First, experts for all tasks and for each group give a stream for all and one a group; then each
    task mixes its own experts, its group's and those for all.

    Three measures keep experts healthy: each is normalised and has a smooth activation (against collapse), each mixes
    in what its own unit made through a gate of its own (against one task capturing a shared expert), and each expert's
    input passes a low-rank gate of its features (against sparse tasks ignoring their experts).

    Source: Wang et al. 2024, arXiv:2408.05430 (HoME): expert normalisation with Swish, hierarchy mask, feature gate and
    self gate.
    Departures: the paper's full text was not at hand when this was written: the self gate is a sigmoid number a
    row and own expert, added to the mixture; the feature gate is 2 sigmoid of one low-rank product an expert bank,
    where the paper has one an expert.
    Cost: the experts for all and of the named tasks' groups once; for each named task its own experts and gates.
    """

    class Options(SharingOptions):
        """Attributes: groups, name -> its tasks, each task in one (by default one group of all); experts of each unit;
        hidden_sizes of an expert at each level; rank of the feature gates.
        """

        kind: Literal["home"] = "home"
        groups: dict[str, tuple[str, ...]] | None = None
        experts: PositiveInt = 2
        hidden_sizes: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (64,)
        activation: Activation = "silu"
        normalization: Normalization = "batch"
        rank: PositiveInt = 8

    def __init__(self, make_encoder: MakeEncoder, tasks: Iterable[str], options: Options, seed: int = 0) -> None:
        super().__init__(make_encoder, tasks, options, seed)
        tasks = list(tasks)
        self.group_of = group_of(options.groups, tasks, options.kind)
        self.encoder = make_encoder()
        width, last = self.encoder.width, options.hidden_sizes[-1]
        groups = list(dict.fromkeys(self.group_of.values()))
        with seeded(seed, "all"):
            self.meta_all, self.for_all = Unit(width, 1, options), GatedExperts(last, options)
        self.meta_groups: NamedModules[Unit] = NamedModules()
        self.for_groups: NamedModules[GatedExperts] = NamedModules()
        self.own: TaskModules[Unit] = TaskModules()
        for group in groups:
            with seeded(seed, "group", group):
                self.meta_groups[group] = Unit(width, 2, options)
                self.for_groups[group] = GatedExperts(last, options)
        for task in tasks:
            with seeded(seed, "task", task):
                self.own[task] = Unit(last, 3, options)
        self.width = last

    def representation(self, inputs: Mapping[str, Tensor]) -> Float[Tensor, "B d"]:
        """The encoder's output, which the first level reads."""
        return self.encoder(inputs)

    def features(self, representation: Float[Tensor, "B d"], tasks: list[str]) -> dict[str, Tensor]:
        groups = list(dict.fromkeys(self.group_of[task] for task in tasks))
        common = self.meta_all.experts(representation)
        stream = self.meta_all.mixture(representation, [common])
        note_experts("level.0", numbered("shared", len(common)), common)
        for_all = self.for_all(stream)
        streams, for_group = {}, {}
        for group in groups:
            unit = self.meta_groups[group]
            own = unit.experts(representation)
            note_experts("level.0", numbered(group, len(own)), own)
            streams[group] = unit.mixture(representation, [own, common])
            for_group[group] = self.for_groups[group](streams[group])
        outputs = {}
        for group in groups:
            members = [task for task in tasks if self.group_of[task] == group]
            own = [self.own[task].experts(streams[group]) for task in members]
            weights = torch.stack([self.own[task].own_and_seen(streams[group]) for task in members], dim=1)
            seen, n = torch.cat([for_group[group], for_all]), len(own[0])  # what all members mix, in one product
            weights = weights.to(seen.dtype)
            mixtures = torch.einsum("btn,tnbd->btd", weights[..., :n], torch.stack(own)) + mixed(weights[..., n:], seen)
            outputs |= dict(zip(members, mixtures.unbind(1), strict=True))
            for task, bank in zip(members, own, strict=True):
                self._note(task, {task: bank, group: for_group[group], "shared": for_all}, streams[group])
        return {task: outputs[task] for task in tasks}

    def _note(self, task: str, banks: Mapping[str, Tensor], stream: Tensor) -> None:
        for owner, bank in banks.items():
            note_experts("level.1", numbered(owner, len(bank)), bank)
        if listening():
            names = [name for owner, bank in banks.items() for name in numbered(owner, len(bank))]
            note_gate("level.1", task, names, self.own[task].weights(stream))


class GatedExperts(nn.Module):
    """Experts that read features through a low-rank gate."""

    def __init__(self, width: int, options: HoME.Options) -> None:
        super().__init__()
        self.bank = Experts(
            options.experts,
            width,
            options.hidden_sizes,
            activation=options.activation,
            normalization=options.normalization,
        )
        self.down = nn.Linear(width, min(options.rank, width), bias=False)
        self.up = nn.Linear(min(options.rank, width), width, bias=False)

    def forward(self, x: Float[Tensor, "B d"]) -> Float[Tensor, "E B width"]:
        gate = self.up(self.down(x) / 2).tanh()  # 2 sigmoid(u) = 1 + tanh(u / 2), in one pass over x instead of two
        return self.bank(torch.addcmul(x, x, gate.to(x.dtype)))


class Unit(nn.Module):
    """Experts of one owner, and the gates by which the owner mixes what it may see.

    Args:
        width: of what its experts and gates read.
        banks: how many units' experts the owner mixes, its own among them.
    """

    def __init__(self, width: int, banks: int, options: HoME.Options) -> None:
        super().__init__()
        self.experts = GatedExperts(width, options)
        self.gate = Scores(banks * options.experts, width, Softmax())
        self.self_gate = Scores(options.experts, width, Softmax())

    def weights(self, x: Float[Tensor, "B d"]) -> Float[Tensor, "B experts"]:
        """How it weighs the experts of all units that it may see."""
        return self.gate(x).softmax(-1)

    def mixture(self, x: Float[Tensor, "B d"], banks: list[Tensor]) -> Float[Tensor, "B width"]:
        """The gate's mixture of the banks, of which the first is the unit's own, and that one through its own gate."""
        return mixed(self.own_and_seen(x).unsqueeze(1), torch.cat(banks)).squeeze(1)

    def own_and_seen(self, x: Float[Tensor, "B d"]) -> Float[Tensor, "B experts"]:
        """What each expert counts: the gate's weight; for the unit's own, which come first, their own gate's too."""
        weights, own = self.weights(x), torch.sigmoid(self.self_gate(x))
        return torch.cat([weights[:, : own.shape[1]] + own, weights[:, own.shape[1] :]], dim=1)
