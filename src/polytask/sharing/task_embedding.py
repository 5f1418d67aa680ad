"""A vector a task that every shared layer reads beside its input."""

from collections.abc import Iterable
from typing import Literal

from jaxtyping import Float
from pydantic import PositiveInt
from torch import Tensor, nn

from polytask.sharing.conditioning import Conditioned, ConditionedOptions
from polytask.sharing.contract import MakeEncoder
from polytask.sharing.gates import Embedding
from polytask.sharing.layers import Stack, TaskModules, seeded


class TaskEmbedding(Conditioned):
    """W_l [h; e_t] + b_l: the task's vector e_t is joined to what each shared layer reads.

    Source: that of a learned vector a task as a further input, as in Caruana 1997 ("Multitask learning"), section 2 on
    inputs, and in the task tokens and task codes of the systems since.
    Departures: the part of W_l that reads e_t is a matrix of its own, which is the same computation.
    Cost: that of the shared layers, and embedding x width multiply-adds a layer and task.
    """

    class Options(ConditionedOptions):
        """Attributes: embedding, the width of a task's vector."""

        kind: Literal["task_embedding"] = "task_embedding"
        embedding: PositiveInt = 16

    def __init__(self, make_encoder: MakeEncoder, tasks: Iterable[str], options: Options, seed: int = 0) -> None:
        super().__init__(make_encoder, tasks, options, seed)
        with seeded(seed, "embeddings"):
            self.readers = Stack(nn.Linear(options.embedding, size, bias=False) for size in self.widths)
        self.embeddings: TaskModules[Embedding] = TaskModules()
        for task in tasks:
            with seeded(seed, "embedding", task):
                self.embeddings[task] = Embedding(options.embedding)

    def conditioned(self, task: str, place: int, x: Float[Tensor, "*B d"]) -> Float[Tensor, "*B d"]:
        return x + self.readers[place](self.embeddings[task].vector)

    def condition(self, task: str) -> str:
        return f"a vector of {len(self.embeddings[task].vector)}, read by {len(self.readers)} layers"
