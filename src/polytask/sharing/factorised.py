"""Factorised heads: every task's weights are a combination of a few latent tasks, W = L S."""

from collections.abc import Iterable, Mapping
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from polytask.sharing.contract import MakeEncoder, Sharing
from polytask.sharing.groups import group_of
from polytask.sharing.layers import TaskModules, seeded
from polytask.sharing.spec import SharingOptions
from polytask.sharing.tape import listening, note_penalty


class Factorised(Sharing):
    """Task t's features are (L^T z) * s_t: L [width, rank] holds latent tasks, s_t how much task t takes of each.

    With a head's weights V a task's weights on z are L diag(s_t) V: all tasks' linear models lie in `rank` dimensions.

    A penalty makes s sparse: the sum over latent tasks of the length of s among the tasks of a group, so that a group
    takes or leaves a latent task together; a task in no group is one of its own.

    Source: Kumar and Daume 2012, arXiv:1206.6417 (W = L S with sparse S); with groups of attributes that share latent
    tasks and compete for them: Abdulnabi et al. 2016, arXiv:1601.00400.
    Departures: S stands before a linear head, which may have several outputs; L is learnt with the encoder by gradient
    descent and not in alternation; the group penalty is the plain one (length over the group), which the second paper's
    refines.
    Cost: B x width x rank once, B x rank for each named task.
    """

    class Options(SharingOptions):
        """Attributes: rank, how many latent tasks; groups, name -> its tasks; sparsity, the factor of the penalty."""

        kind: Literal["factorised"] = "factorised"
        rank: PositiveInt = 16
        groups: dict[str, tuple[str, ...]] | None = None
        sparsity: float = Field(default=0.001, ge=0)

    def __init__(self, make_encoder: MakeEncoder, tasks: Iterable[str], options: Options, seed: int = 0) -> None:
        super().__init__(make_encoder, tasks, options, seed)
        tasks = list(tasks)
        self.sparsity = options.sparsity
        self.encoder, self.width = make_encoder(), options.rank
        of = group_of(options.groups or {}, tasks, options.kind, alone=True)
        self.mates = {task: [other for other in tasks if of[other] == of[task]] for task in tasks}
        with seeded(seed, "latent tasks"):
            self.latent = nn.Linear(self.encoder.width, options.rank, bias=False)
        self.taken: TaskModules[Shares] = TaskModules()
        for task in tasks:
            with seeded(seed, "taken", task):
                self.taken[task] = Shares(options.rank)

    def representation(self, inputs: Mapping[str, Tensor]) -> Float[Tensor, "B d"]:
        """The encoder's output, on which the tasks' models are linear."""
        return self.encoder(inputs)

    def features(self, representation: Float[Tensor, "B d"], tasks: list[str]) -> dict[str, Tensor]:
        latent = self.latent(representation)
        if listening() and self.sparsity:
            for task in tasks:
                note_penalty(task, self.sparsity * self._length(task) / len(self.mates[task]))
        return {task: latent * self.taken[task].vector.to(latent.dtype) for task in tasks}

    def _length(self, task: str) -> Tensor:
        """The sum over latent tasks of the length of s among the task's group."""
        together = torch.stack([self.taken[mate].vector for mate in self.mates[task]])
        return torch.linalg.vector_norm(together, dim=0).sum()


class Shares(nn.Module):
    """How much a task takes of each latent task; around 1 at the start."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.vector = nn.Parameter(1 + 0.1 * torch.randn(rank))
