"""Layers that are shared or a task's own, as a learned score of the task and layer says."""

from collections.abc import Iterable, Mapping
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from polytask.sharing.contract import MakeEncoder, Sharing
from polytask.sharing.experts import Experts, run_together
from polytask.sharing.layers import Activation, Stack, TaskModules, seeded
from polytask.sharing.spec import SharingOptions
from polytask.sharing.tape import listening, note_gate, note_penalty
from polytask.sharing.towers import TowerLevel, tower_levels


class LayerGates(Sharing):
    """h_tl = g_tl f_l(h) + (1 - g_tl) f_tl(h): g_tl is 1, the shared layer, where sigmoid(score_tl) is at least 1/2,
    else 0, the task's own; the gradient is the sigmoid's (straight-through). A penalty draws tasks to the shared layer.

    Source: Xie et al. 2023, arXiv:2308.11928 (OFVL-MS), its layer-adaptive sharing: a learnable score a layer, made
    hard, and a sparse penalty on the scores that favours sharing.
    Departures: the paper's text was not at hand: the threshold, the straight-through gradient and the form of the
    penalty (the mean over layers of 1 - sigmoid) are ours; layers stand above the encoder; its normalisation of
    gradients is a rule (`imtl_g`, `gradnorm`) and not part of this.
    Cost: for each named task its own layers and the shared ones, both computed.
    """

    class Options(SharingOptions):
        """Attributes: hidden_sizes of the layers; start, the sigmoid of a score at the start; sharing, the factor of
        the penalty.
        """

        kind: Literal["layer_gates"] = "layer_gates"
        hidden_sizes: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (64, 64)
        activation: Activation = "relu"
        start: float = Field(default=0.6, gt=0, lt=1)
        sharing: float = Field(default=0.01, ge=0)

    def __init__(self, make_encoder: MakeEncoder, tasks: Iterable[str], options: Options, seed: int = 0) -> None:
        super().__init__(make_encoder, tasks, options, seed)
        tasks = list(tasks)
        self.encoder, self.options = make_encoder(), options
        sizes, width = options.hidden_sizes, self.encoder.width
        self.own: Stack[TowerLevel] = tower_levels(tasks, width, sizes, options.activation, seed)
        with seeded(seed, "shared"):
            inputs = (width, *sizes[:-1])
            self.shared: Stack[Experts] = Stack(
                Experts(1, of, (size,), activation=options.activation) for of, size in zip(inputs, sizes, strict=True)
            )
        self.scores: TaskModules[LayerScores] = TaskModules()
        for task in tasks:
            self.scores[task] = LayerScores(len(sizes), options.start)
        self.width = sizes[-1]

    def representation(self, inputs: Mapping[str, Tensor]) -> Float[Tensor, "B d"]:
        """The encoder's output, which the first layers read."""
        return self.encoder(inputs)

    def features(self, representation: Float[Tensor, "B d"], tasks: list[str]) -> dict[str, Tensor]:
        gates = {task: self.scores[task]() for task in tasks}
        streams = [representation] * len(tasks)
        for number, (shared, own) in enumerate(zip(self.shared, self.own, strict=True)):
            of_shared = run_together([shared] * len(tasks), streams)
            of_own = run_together([own.layers[task] for task in tasks], streams)
            weights = torch.stack([gates[task][number] for task in tasks]).to(of_own.dtype)[:, None, None]
            streams = list((weights * of_shared + (1 - weights) * of_own).unbind(0))
        if listening():
            self._note(tasks, gates, len(representation))
        return dict(zip(tasks, streams, strict=True))

    def _note(self, tasks: list[str], gates: Mapping[str, Tensor], rows: int) -> None:
        for task in tasks:
            for number, gate in enumerate(gates[task].unbind()):
                weights = torch.stack([gate, 1 - gate]).expand(rows, -1)
                note_gate(f"layer.{number}", task, ["shared", task], weights)
            if self.options.sharing:
                note_penalty(task, self.options.sharing * (1 - self.scores[task].scores.sigmoid()).mean())


class LayerScores(nn.Module):
    """A task's score for each layer; called, it gives 1 for the shared layer and 0 for the task's own."""

    def __init__(self, layers: int, start: float) -> None:
        super().__init__()
        self.scores = nn.Parameter(torch.logit(torch.full((layers,), start)))

    def forward(self) -> Float[Tensor, "layers"]:
        soft = self.scores.sigmoid()
        return (soft >= 0.5).to(soft.dtype) - soft.detach() + soft
