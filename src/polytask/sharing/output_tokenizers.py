"""Output tokenizers: what may be answered for a task as sequences of tokens, and a task's outputs from the logarithms
of their probabilities. One small object a meaning of outputs; none has parameters.

A task asks one question, or one an output, each named by a text; every question has the same possible answers. Scores
are log-probabilities [*B, questions, answers]; outputs are [*B] or [*B, outputs], as losses and metrics read them.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from polytask.core.errors import BadValue, MissingInput
from polytask.core.outputs import OutputSchema

END = 256
"""The token after the last byte of a text; bytes are tokens by their own number."""


@dataclass(frozen=True)
class Labels:
    """One question; the answers are the labels, and so are the outputs: a softmax over them is that of the task."""

    answers: tuple[str, ...]
    questions: tuple[str, ...] = ()
    bins: int = 0

    def outputs(self, scores: Float[Tensor, "*B 1 answers"]) -> Tensor:
        return _alone(scores.squeeze(-2))


@dataclass(frozen=True)
class Flags:
    """A question a label, answered by yes or no; an output is the logarithm of their odds."""

    names: tuple[str, ...]
    answers: tuple[str, ...] = ("yes", "no")
    bins: int = 0

    @property
    def questions(self) -> tuple[str, ...]:
        return self.names if len(self.names) > 1 else ()

    def outputs(self, scores: Float[Tensor, "*B questions 2"]) -> Tensor:
        return _alone(scores[..., 0] - scores[..., 1])


@dataclass(frozen=True)
class Numbers:
    """A question a number, answered by one of `bins` equal parts of [low, high]; an output is the mean of their centres
    by their probabilities.

    An output lies between the first centre and the last, and anywhere there: the parts bound what a single one can say
    (half a part's width), not what a mixture says.
    """

    names: tuple[str, ...]
    low: float
    high: float
    bins: int
    answers: tuple[str, ...] = ()

    @property
    def questions(self) -> tuple[str, ...]:
        return self.names if len(self.names) > 1 else ()

    def outputs(self, scores: Float[Tensor, "*B questions bins"]) -> Tensor:
        places = torch.arange(self.bins, dtype=scores.dtype, device=scores.device)
        centres = self.low + (places + 0.5) * ((self.high - self.low) / self.bins)
        return _alone((scores.softmax(-1) * centres).sum(-1))


OutputTokenizer = Labels | Flags | Numbers


def tokenizer_of(task: str, schema: OutputSchema, bins: int, limits: tuple[float, float] | None) -> OutputTokenizer:
    """The tokenizer of outputs that stand for this.

    Args:
        task: for messages.
        schema: what the outputs stand for.
        bins: of numbers.
        limits: of numbers, instead of the schema's.

    Raises:
        BadValue: two labels with one text; limits of what is no number. MissingInput: numbers without limits.
    """
    if limits is not None and schema.means != "numbers":
        raise BadValue(f"model.sharing.limits of task {task!r}", list(limits), "none, as its answers are labels")
    if schema.means == "flags":
        return Flags(schema.names)
    if schema.means == "choice":
        for name, count in Counter(schema.names).items():
            if count > 1:
                raise BadValue(f"task {task!r}: labels as text", list(schema.names), f"{name!r} once")
        return Labels(schema.names)
    found = limits or schema.limits
    if found is None:
        raise MissingInput(
            f"task {task!r}: nothing says between which numbers its labels lie; say model.sharing.limits: "
            f"{{{task}: [low, high]}}"
        )
    return Numbers(schema.names, *found, bins)


class PrefixTree(NamedTuple):
    """Sequences of tokens whose common beginnings are one.

    Attributes:
        prefixes: every beginning that something follows, the empty one first, a shorter one before those it begins.
        steps: of each sequence, (number of the prefix, the token that follows it).
    """

    prefixes: tuple[tuple[int, ...], ...]
    steps: tuple[tuple[tuple[int, int], ...], ...]


def prefix_tree(sequences: Sequence[Sequence[int]]) -> PrefixTree:
    """The tree of these sequences."""
    numbers: dict[tuple[int, ...], int] = {(): 0}
    steps = []
    for sequence in sequences:
        found = []
        for place, token in enumerate(sequence):
            prefix = tuple(sequence[:place])
            found.append((numbers.setdefault(prefix, len(numbers)), token))
        steps.append(tuple(found))
    return PrefixTree(tuple(numbers), tuple(steps))


def spelled(text: str) -> tuple[int, ...]:
    """The bytes of a text in UTF-8, and the end."""
    return (*text.encode(), END)


def _alone(outputs: Tensor) -> Tensor:
    """Without the last dimension if that is 1, as a head gives it."""
    return outputs.squeeze(-1) if outputs.shape[-1] == 1 else outputs
