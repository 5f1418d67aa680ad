"""Tasks' embeddings that are made of the tasks' examples, for gates that choose experts by them.

A task's vector is v / |v|, v = sum_k P_k m_k: m_k holds the correlations of each number of a row's encoding with the
k-th number of its target (for a class: whether it is class k), P_k is a random matrix, the same for every task. Tasks
with the same labels so get the same vector, and two-class tasks with opposite labels opposite ones.

Source      Ye, Zha and Ren 2022, arXiv:2205.12701: the vector that the router reads of a task begins as an average over
            encodings of its few-shot examples, (input, output) pairs.
Departures  the paper's text was not at hand. Its examples are texts, and a language model encodes a pair as one text;
            here inputs and targets are of any kind, the model's encoder at its start encodes the input, and the outer
            product with the target, each standardised, makes the pair. The vectors stay as they are made unless
            `learned` says otherwise.
Cost        a pass of the encoder over the examples, and d x K x (rows + width) multiply-adds for the K numbers of a
            target.
"""

from collections.abc import Iterable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from polytask.core.errors import BadValue, DataError
from polytask.core.noise import Noise
from polytask.sharing.contract import Sharing
from polytask.sharing.gates import Gates


def example_embedding(
    encodings: Float[Tensor, "B d"], targets: Float[Tensor, "B K"], present: Bool[Tensor, "B K"], width: int
) -> Float[Tensor, " width"]:
    """The vector of these examples, float64; zero where the encodings, or the targets, are all alike."""
    rows = _standardised(encodings, torch.ones_like(encodings, dtype=torch.bool))
    correlations = rows.T @ _standardised(targets, present) / present.sum(0).clamp(min=1)  # [d, K]
    vector = torch.zeros(width, dtype=torch.float64)
    for number, correlation in enumerate(correlations.T):
        noise = Noise(0, "example embedding", number).normal(width * len(correlation))
        vector += torch.from_numpy(noise).reshape(len(correlation), width).T @ correlation
    return functional.normalize(vector, dim=0)


def _standardised(values: Float[Tensor, "B n"], present: Bool[Tensor, "B n"]) -> Float[Tensor, "B n"]:
    """Mean 0 and deviation 1 of what is present, 0 elsewhere and where all values are alike."""
    values = values.double().where(present, torch.nan)
    centred = values - values.nanmean(0)
    deviation = centred.square().nanmean(0).sqrt()
    varies = deviation > 1e-9 * values.nan_to_num().abs().amax(0)  # below it is rounding
    return torch.where(present & varies, centred / deviation, 0)


def read_examples(
    model: nn.Module, task: str, encodings: Float[Tensor, "B d"], labels: Tensor, present: Tensor | None = None
) -> None:
    """Makes the task's embedding in each of the model's gates that reads examples.

    Args:
        encodings: of the examples' inputs: `representation` of a model at its start, the same for all tasks.
        labels: [B] or [B, L] numbers, or [B] classes as integers.
        present: bool, of the labels' shape; None is all.

    Raises:
        DataError: no label, or nothing varies: neither says anything about the task.
    """
    present = torch.ones_like(labels, dtype=torch.bool) if present is None else present
    targets = labels if labels.is_floating_point() else functional.one_hot(labels)  # classes without a row add nothing
    targets, present = targets.reshape(len(labels), -1), present.reshape(len(labels), -1)
    for gates in gates_of_examples(model):
        made = example_embedding(encodings, targets, present.expand(targets.shape), gates.options.embedding)
        if not made.any():
            count = int(present.any(1).sum())
            raise DataError(
                f"task {task!r}: its {count} examples say nothing, as all their labels or all their inputs are alike; "
                "a gate with reads: embedding can do without"
            )
        with torch.no_grad():
            gates.embeddings[task].vector.copy_(made)


def unread(model: nn.Module) -> list[str]:
    """The tasks whose examples the model's gates have yet to read."""
    waiting = [task for gates in gates_of_examples(model) for task in gates.experts if gates.waits_for_examples(task)]
    return list(dict.fromkeys(waiting))


def gates_of_examples(model: nn.Module) -> Iterable[Gates]:
    return (part for part in model.modules() if isinstance(part, Gates) and part.options.reads == "examples")


def check_readable(sharing: Sharing, kind: str) -> None:
    """BadValue for gates by examples where no vector stands for a row: what would be averaged over the examples."""
    if any(gates_of_examples(sharing)) and not (sharing.shares and sharing.reads == ("vector",)):
        why = "its encoders give maps" if sharing.shares else "its tasks share no encoding of a row"
        raise BadValue(f"sharing {kind!r}: gate.reads", "examples", f"another, such as embedding: {why}")
