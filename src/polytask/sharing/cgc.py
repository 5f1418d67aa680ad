"""Customised gate control: experts of each task's own beside shared ones."""

from collections.abc import Iterable, Mapping
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from polytask.sharing.contract import MakeEncoder, Sharing
from polytask.sharing.experts import Experts, mixed, run_together
from polytask.sharing.gates import GateChoice, GateOptions, Gates, Scores
from polytask.sharing.layers import Activation, TaskModules, seeded
from polytask.sharing.selection import Softmax
from polytask.sharing.spec import SharingOptions
from polytask.sharing.tape import note_experts, numbered


class ExpertOptions(SharingOptions):
    """Attributes: shared_experts and task_experts, their numbers (the second for each task); hidden_sizes of each, the
    last is the width of the result; gate.
    """

    shared_experts: PositiveInt = 4
    task_experts: PositiveInt = 2
    hidden_sizes: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (64,)
    activation: Activation = "relu"
    gate: GateChoice = GateOptions()


class ExpertLevel(nn.Module):
    """One extraction level: experts of each task and shared ones; a task's gate mixes its own and the shared.

    Args:
        name: of the level, in seeds and on the tape.
        tasks: in order.
        width: of the streams that are read.
        passes_on: whether the shared stream goes on to another level, for which a gate mixes all experts.
    """

    def __init__(
        self, name: str, tasks: list[str], width: int, options: ExpertOptions, seed: int, *, passes_on: bool
    ) -> None:
        super().__init__()
        self.name = name
        sizes, activation = options.hidden_sizes, options.activation
        with seeded(seed, name, "experts"):
            self.shared = Experts(options.shared_experts, width, sizes, activation=activation)
        self.own: TaskModules[Experts] = TaskModules()
        for task in tasks:
            with seeded(seed, name, "experts", task):
                self.own[task] = Experts(options.task_experts, width, sizes, activation=activation)
        self.names = {task: numbered(task, options.task_experts) for task in tasks}
        self.shared_names = numbered("shared", options.shared_experts)
        choices = {task: [*own, *self.shared_names] for task, own in self.names.items()}
        self.gates = Gates(name, tasks, width, choices, options.gate, seed)
        self.shared_gate = None
        if passes_on:
            every = options.task_experts * len(tasks) + options.shared_experts
            with seeded(seed, name, "shared gate"):
                self.shared_gate = Scores(every, width, Softmax())
        self.width = self.shared.width

    def forward(
        self, streams: Mapping[str, Tensor], shared: Float[Tensor, "B d"], *, only: list[str] | None = None
    ) -> tuple[dict[str, Tensor], Tensor | None]:
        """(task -> its stream, the shared stream if it goes on) for all tasks, or those in `only`.

        Args:
            streams: task -> [B, d]; the same tensor for all of them where no level came before.
            shared: the shared stream.
        """
        tasks = list(self.own) if only is None else only
        own, common = self._experts(tasks, streams, shared)
        for task, outputs in zip(tasks, own, strict=True):
            note_experts(self.name, self.names[task], outputs)
        note_experts(self.name, self.shared_names, common)
        weights = torch.stack([self.gates(task, streams[task]) for task in tasks], dim=1)  # [B, T, n + s]
        n = own.shape[1]
        from_own = torch.einsum("btn,tnbd->btd", weights[..., :n].to(own.dtype), own)
        mixtures = from_own + mixed(weights[..., n:], common)
        if self.shared_gate is None:
            return dict(zip(tasks, mixtures.unbind(1), strict=True)), None
        every = torch.cat([own.flatten(0, 1), common])
        passed = mixed(self.shared_gate(shared).softmax(-1).unsqueeze(1), every).squeeze(1)
        return dict(zip(tasks, mixtures.unbind(1), strict=True)), passed

    def _experts(
        self, tasks: list[str], streams: Mapping[str, Tensor], shared: Tensor
    ) -> tuple[Float[Tensor, "T n B width"], Float[Tensor, "s B width"]]:
        banks = [self.own[task] for task in tasks] + [self.shared]
        inputs = [streams[task] for task in tasks] + [shared]
        same = all(stream is shared for stream in inputs)
        experts = run_together(banks, shared if same else inputs)
        n = len(self.own[tasks[0]])
        own, common = experts.split([n * len(tasks), len(self.shared)])
        return own.unflatten(0, (len(tasks), n)), common


class CGC(Sharing):
    """Each task mixes its own experts and the shared ones: h_t = sum over both of softmax(W_t z)_e f_e(z).

    Source: Tang et al. 2020 ("Progressive layered extraction (PLE)", RecSys), its customised gate control (CGC) model.
    Departures: gates and experts read the encoder's output z, where the paper's read the embedded input; other gates
    than the softmax may be chosen.
    Cost: the shared experts once; for each named task its own experts and B x width x (own + shared) for its gate.
    """

    class Options(ExpertOptions):
        """As described for experts."""

        kind: Literal["cgc"] = "cgc"

    def __init__(self, make_encoder: MakeEncoder, tasks: Iterable[str], options: Options, seed: int = 0) -> None:
        super().__init__(make_encoder, tasks, options, seed)
        self.encoder = make_encoder()
        self.level = ExpertLevel("level.0", list(tasks), self.encoder.width, options, seed, passes_on=False)
        self.width = self.level.width

    def representation(self, inputs: Mapping[str, Tensor]) -> Float[Tensor, "B d"]:
        """The encoder's output, which experts and gates read."""
        return self.encoder(inputs)

    def features(self, representation: Float[Tensor, "B d"], tasks: list[str]) -> dict[str, Tensor]:
        streams, _ = self.level(dict.fromkeys(tasks, representation), representation, only=tasks)
        return streams
