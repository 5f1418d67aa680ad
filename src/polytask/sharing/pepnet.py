"""Parameter and embedding personalised network: prior inputs scale what is embedded and what each tower makes of it."""

from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from polytask.sharing.contract import MakeEncoder, Sharing
from polytask.sharing.layers import ACTIVATIONS, Activation, Stack, TaskModules, seeded
from polytask.sharing.spec import EncoderChoice, SharingOptions


class PEPNet(Sharing):
    """EPNet: o = gate(domain inputs, z) * z. PPNet: in a task's tower h_l = gate_l(prior inputs, o) * f(W_l h_(l-1)),
    from h_0 = o. A gate is 2 sigmoid of two layers, so 1 changes nothing, and no gradient goes through z and o into it.

    Source: Chang et al. 2023, arXiv:2302.01115 (PEPNet): its gate neural units with factor 2, EPNet and PPNet with the
    gradient stopped.
    Departures: the paper's full text was not at hand: the gates scale what each layer of a tower gives, with a gate a
    task and layer. z is the encoder's output (one without hidden layers gives the embeddings). Without `domain` there
    is no EPNet; without `prior` the gates of PPNet read o alone.
    Cost: the encoders once; for each named task its tower, and gate x (prior + d + width) multiply-adds a layer.
    """

    class Options(SharingOptions):
        """Attributes: hidden_sizes of a tower; gate, the inner width of the gates; domain and prior, the encoders of
        their inputs: `{kind: tabular, columns: [user_id, item_id], keys: [], hidden_sizes: []}`.
        """

        widths: ClassVar[dict[str, int]] = {"hidden_sizes": 1, "gate": 1}
        kind: Literal["pepnet"] = "pepnet"
        hidden_sizes: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (64,)
        activation: Activation = "relu"
        gate: PositiveInt = 32
        domain: EncoderChoice | None = None
        prior: EncoderChoice | None = None

    def __init__(self, make_encoder: MakeEncoder, tasks: Iterable[str], options: Options, seed: int = 0) -> None:
        super().__init__(make_encoder, tasks, options, seed)
        self.encoder = make_encoder()
        self.domain = None if options.domain is None else make_encoder.of(options.domain, "domain")
        self.prior = None if options.prior is None else make_encoder.of(options.prior, "prior")
        width = self.encoder.width
        self.embedding_gate: GateUnit | None = None
        if self.domain is not None:
            with seeded(seed, "embedding gate"):
                self.embedding_gate = GateUnit(self.domain.width + width, options.gate, width)
        read = width + (0 if self.prior is None else self.prior.width)
        self.towers: TaskModules[GatedTower] = TaskModules()
        for task in tasks:
            with seeded(seed, "tower", task):
                self.towers[task] = GatedTower(width, read, options)
        self.width, self.representation_parts = options.hidden_sizes[-1], (width, read - width)

    @property
    def representation_width(self) -> int:
        return sum(self.representation_parts)

    def representation(self, inputs: Mapping[str, Tensor]) -> Float[Tensor, "B d"]:
        """What every tower reads, o, and behind it the prior inputs."""
        z = self.encoder(inputs)
        if self.embedding_gate is not None and self.domain is not None:
            z = self.embedding_gate(torch.cat([self.domain(inputs), z.detach()], dim=1)) * z
        return z if self.prior is None else torch.cat([z, self.prior(inputs)], dim=1)

    def features(self, representation: Float[Tensor, "B d"], tasks: list[str]) -> dict[str, Tensor]:
        embedded, prior = representation.split(list(self.representation_parts), dim=1)
        read = torch.cat([prior, embedded.detach()], dim=1)
        return {task: self.towers[task](embedded, read) for task in tasks}


class GateUnit(nn.Module):
    """2 sigmoid of two layers: numbers between 0 and 2."""

    def __init__(self, inputs: int, inner: int, outputs: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(inputs, inner), nn.ReLU(), nn.Linear(inner, outputs))

    def forward(self, x: Float[Tensor, "B inputs"]) -> Float[Tensor, "B outputs"]:
        return 2 * self.layers(x).sigmoid()


class GatedTower(nn.Module):
    """Linear layers, each with its activation and scaled by a gate on other inputs."""

    def __init__(self, width: int, read: int, options: PEPNet.Options) -> None:
        super().__init__()
        sizes = list(pairwise((width, *options.hidden_sizes)))
        self.layers: Stack[nn.Linear] = Stack(nn.Linear(inputs, outputs) for inputs, outputs in sizes)
        self.gates: Stack[GateUnit] = Stack(GateUnit(read, options.gate, outputs) for _, outputs in sizes)
        self.activation = ACTIVATIONS[options.activation]()

    def forward(self, x: Float[Tensor, "B d"], read: Float[Tensor, "B r"]) -> Float[Tensor, "B width"]:
        for layer, gate in zip(self.layers, self.gates, strict=True):
            x = gate(read) * self.activation(layer(x))
        return x
