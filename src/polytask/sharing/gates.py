"""Gates: for each task, weights of the experts. Two axes: what the scores depend on, and how they become weights."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

import torch
from jaxtyping import Float
from pydantic import (
    BeforeValidator,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    PositiveInt,
    SerializeAsAny,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema
from torch import Tensor, nn
from torch.nn import functional

from polytask.core.errors import BadValue, MissingInput, UnknownName
from polytask.core.validation import Strict, validated
from polytask.sharing.layers import TaskModules, seeded
from polytask.sharing.selection import SELECTIONS, Selection, Softmax
from polytask.sharing.tape import listening, note_gate, note_penalty

Reads = Literal["input", "task", "embedding", "input_and_embedding", "examples"]


@dataclass(frozen=True)
class _Selected:
    """Turns `top_k` or `{kind: top_k, k: 2}` into the selection of that name."""

    def __call__(self, value: Any) -> Any:
        if isinstance(value, Selection):
            return value
        kind = value if isinstance(value, str) else value.get("kind") if isinstance(value, dict) else None
        if kind not in SELECTIONS:
            raise UnknownName("selection", str(kind), SELECTIONS, "gate")
        return validated(SELECTIONS[kind], {} if isinstance(value, str) else value, "gate.select")

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return BeforeValidator(self.__call__).__get_pydantic_core_schema__(source, handler)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """For editors: a name, or any of the selections' options."""
        options = [handler(select.__pydantic_core_schema__) for select in SELECTIONS.values()]
        return {"anyOf": [{"enum": list(SELECTIONS)}, *options]}


class GateOptions(Strict):
    """Attributes:
    select: how scores become weights: softmax, top_k, hard, dselect_k, dense_to_sparse.
    reads: what the scores depend on: the row's `input` (a gate a task); the `task` alone (a vector of scores a task);
        the task's `embedding` (one gate for all tasks, which reads a vector a task); `input_and_embedding`; or
        `examples` of the task, of which its embedding is made before training.
    embedding: width of the tasks' embeddings, where they are read.
    learned: whether embeddings that are made of examples learn from there.
    """

    select: Annotated[SerializeAsAny[Selection], _Selected()] = Softmax()
    reads: Reads = "input"
    embedding: PositiveInt = 16
    learned: bool = False

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.learned and self.reads != "examples":
            raise BadValue("learned", True, "false unless reads is examples: an embedding always learns", "gate")
        return self


@dataclass(frozen=True)
class _Gate:
    """`dselect_k` is short for `{select: dselect_k}`."""

    def __call__(self, value: Any) -> Any:
        return {"select": value} if isinstance(value, str) else value

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return BeforeValidator(self.__call__).__get_pydantic_core_schema__(source, handler)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {"anyOf": [{"enum": list(SELECTIONS)}, handler(schema)]}


GateChoice = Annotated[GateOptions, _Gate()]


class Gates(nn.Module):
    """A gate a task over one set of experts.

    Args:
        place: what the gates are called on the tape.
        tasks: those that have a gate.
        width: of the rows that the gates read.
        experts: the names of the experts that a task chooses among, the same number for each task.
    """

    def __init__(
        self,
        place: str,
        tasks: Iterable[str],
        width: int,
        experts: Mapping[str, Sequence[str]],
        options: GateOptions,
        seed: int,
    ) -> None:
        super().__init__()
        tasks = list(tasks)
        self.place, self.options, self.select = place, options, options.select
        self.experts = {task: list(experts[task]) for task in tasks}
        self.gates: TaskModules[Scores] = TaskModules()
        self.embeddings: TaskModules[Embedding] = TaskModules()
        self.passes = Passes() if self.select.counts else None
        self.shared = None
        self._read: set[str] = set()  # tasks whose embeddings are known to be made of examples
        for task in tasks:
            scores = self.select.scores(len(self.experts[task]))
            with seeded(seed, place, "gate", task):
                if options.reads in ("input", "task"):
                    self.gates[task] = Scores(scores, width if options.reads == "input" else None, self.select)
                else:
                    self.embeddings[task] = Embedding(options.embedding)
            if options.reads == "examples":
                nn.init.constant_(self.embeddings[task].vector.requires_grad_(options.learned), math.nan)
        if self.embeddings:
            inputs = options.embedding + (width if options.reads == "input_and_embedding" else 0)
            with seeded(seed, place, "gate"):
                self.shared = Scores(self.select.scores(len(self.experts[tasks[0]])), inputs, self.select)

    def forward(self, task: str, x: Float[Tensor, "B width"]) -> Float[Tensor, "B experts"]:
        """The weights of the task's experts for these rows."""
        scores, experts = self._scores(task, x), len(self.experts[task])
        weights = self._weights(scores, experts)  # [1, experts] where the rows do not matter
        if listening():
            note_gate(self.place, task, self.experts[task], weights.expand(x.shape[0], -1))
            penalty = self.select.penalty(scores, experts)
            if penalty is not None:
                note_penalty(task, penalty)
        return weights.expand(x.shape[0], -1)

    def _weights(self, scores: Tensor, experts: int) -> Tensor:
        if self.passes is None:
            return self.select.weights(scores, experts)
        return self.select.weights_after(self.passes.count, scores, experts)

    def _scores(self, task: str, x: Tensor) -> Tensor:
        if self.shared is None:
            return self.gates[task](x)
        self._require_examples(task)
        embedding = self.embeddings[task].vector.unsqueeze(0)
        if self.options.reads != "input_and_embedding":
            return self.shared(embedding)
        return self.shared(torch.cat([x, embedding.expand(x.shape[0], -1).to(x.dtype)], dim=1))

    def waits_for_examples(self, task: str) -> bool:
        """Whether the task's embedding is yet to be made of its examples."""
        return self.options.reads == "examples" and bool(self.embeddings[task].vector.isnan().any())

    def _require_examples(self, task: str) -> None:
        """MissingInput where the task's embedding is not made; looked at once, since a look stalls an accelerator."""
        if self.options.reads != "examples" or task in self._read or torch.compiler.is_exporting():
            return
        if self.waits_for_examples(task):
            raise MissingInput(
                f"gate {self.place!r}: the examples of task {task!r} were not read yet: training reads them when it "
                "begins; a loop of your own calls polytask.sharing.read_examples first"
            )
        self._read.add(task)


class Scores(nn.Module):
    """Linear scores of a row, without a bias; with `width` None one vector of scores for all rows."""

    def __init__(self, scores: int, width: int | None, select: Selection) -> None:
        super().__init__()
        self.constant = width is None
        self.weight = nn.Parameter(torch.empty(scores, 1 if width is None else width))
        with torch.no_grad():
            select.reset(self.weight)
            if width is None:
                self.weight *= 0.01  # near-uniform: a gate that starts with a favourite keeps it

    def forward(self, x: Tensor) -> Tensor:
        return self.weight.mT if self.constant else functional.linear(x, self.weight)


class Passes(nn.Module):
    """How many passes the model has begun in training mode, which it counts itself: whichever tasks have labels, and on
    however many processes."""

    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))


class Embedding(nn.Module):
    """A task's vector."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.vector = nn.Parameter(torch.randn(width) / math.sqrt(width))
