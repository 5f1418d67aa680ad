"""Experts that begin as one and part later, behind a gate that begins dense and becomes sparse."""

from collections.abc import Iterable, Mapping
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from polytask.core.errors import BadValue
from polytask.sharing.contract import MakeEncoder, Sharing
from polytask.sharing.gates import Passes, Scores
from polytask.sharing.layers import ACTIVATIONS, Activation, TaskModules, seeded
from polytask.sharing.selection import DenseToSparse
from polytask.sharing.spec import SharingOptions
from polytask.sharing.tape import listening, note_experts, note_gate, numbered


class EvoMoE(Sharing):
    """h_t = sum_e g_te(z) f_e(z), f_e one layer with weights W * M_e + D_e.

    Before step `spawn` all experts are W: there is one. Then each keeps a random part of it (the mask M_e) and learns a
    difference D_e of its own. A task's gate is softmax(scores / temperature); from `spawn` to `sparse` the temperature
    falls from `warm` to `cold`, and experts with a weight below `threshold` drop out (never the best one), so that a
    row uses fewer and fewer. Steps are the model's passes in training mode, and are part of its state.

    Source: Nie et al. 2021, arXiv:2112.14397 (EvoMoE): one expert that is spawned into diverse ones by random masks,
    and the dense-to-sparse gate with an annealed temperature and a threshold.
    Departures: spawned experts keep W in common; no Gumbel noise; the temperature falls geometrically; a gate a task;
    no term that balances load. The paper's text was not at hand for the numbers, which are ours.
    Cost: all E experts, whether they have dropped out or not.
    """

    class Options(SharingOptions):
        """Attributes: experts; width of an expert's layer; spawn and sparse, steps; keep, the share of W that an expert
        keeps; warm, cold: the gate's temperature at the start and end; threshold.
        """

        kind: Literal["evomoe"] = "evomoe"
        experts: PositiveInt = 8
        width: PositiveInt = 64
        activation: Activation = "relu"
        spawn: int = Field(default=200, ge=0)
        sparse: PositiveInt = 2000
        keep: float = Field(default=0.8, gt=0, le=1)
        warm: float = Field(default=2.0, gt=0)
        cold: float = Field(default=0.3, gt=0)
        threshold: float = Field(default=0.05, ge=0, lt=1)

    masks: Tensor

    def __init__(self, make_encoder: MakeEncoder, tasks: Iterable[str], options: Options, seed: int = 0) -> None:
        super().__init__(make_encoder, tasks, options, seed)
        self.encoder, self.options, self.width = make_encoder(), options, options.width
        self.activation = ACTIVATIONS[options.activation]()
        self.names = numbered("shared", options.experts)
        with seeded(seed, "experts"):
            self.base = nn.Linear(self.encoder.width, options.width)
            shape = (options.experts, options.width, self.encoder.width)
            masks = (torch.rand(shape) < options.keep).to(torch.float32)
        self.differences = nn.Parameter(torch.zeros(shape))
        self.register_buffer("masks", masks)
        self.passes = Passes()
        if options.sparse <= options.spawn:
            raise BadValue("sharing 'evomoe': sparse", options.sparse, f"more than spawn, {options.spawn}")
        self.select = DenseToSparse(
            begin=options.spawn,
            end=options.sparse,
            warm=options.warm,
            cold=options.cold,
            threshold=options.threshold,
        )
        self.gates: TaskModules[Scores] = TaskModules()
        for task in tasks:
            with seeded(seed, "gate", task):
                self.gates[task] = Scores(options.experts, self.encoder.width, self.select)

    def representation(self, inputs: Mapping[str, Tensor]) -> Float[Tensor, "B d"]:
        """The encoder's output, which experts and gates read."""
        return self.encoder(inputs)

    def features(self, representation: Float[Tensor, "B d"], tasks: list[str]) -> dict[str, Tensor]:
        spawned = self.passes.count >= self.options.spawn
        weights = self._gates(representation, tasks)
        masks = torch.where(spawned, self.masks, 1.0).to(self.base.weight.dtype)
        layers = self.base.weight * masks + self.differences * spawned.to(self.differences.dtype)
        experts = self.activation(representation @ layers.mT + self.base.bias)  # [E, B, width]
        note_experts("experts", self.names, experts)
        if listening():
            for place, task in enumerate(tasks):
                note_gate("experts", task, self.names, weights[:, place])
        mixtures = weights.to(experts.dtype) @ experts.transpose(0, 1)  # [B, T, width]
        return dict(zip(tasks, mixtures.unbind(1), strict=True))

    def _gates(self, z: Float[Tensor, "B d"], tasks: list[str]) -> Float[Tensor, "B T E"]:
        """Each task's weights at this step."""
        scores = torch.stack([self.gates[task](z) for task in tasks], dim=1)
        return self.select.weights_after(self.passes.count, scores, len(self.names))
