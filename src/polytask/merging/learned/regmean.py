"""RegMean: each linear layer answers its tasks' inputs as nearly as it can as the tasks' own layers did.

Source      Jin, Ren, Preotiuc-Pietro and Cheng 2023, arXiv:2212.09849: of the layer y = W x of every task t with
            inputs X_t, the least squares solution W = (sum_t W_t G_t) (sum_t G_t)^-1 with G_t = X_t^T X_t, the entries
            of G_t off the diagonal scaled by 0.9; everything that is no linear layer's weight is averaged.
Departures  where no task's inputs have a component, W is the tasks' mean (the formula has no answer there). Of padded
            sequences the padding counts too. The paper's text was not at hand; its formula is that of two independent
            descriptions.
Cost        a forward pass of each task's model for each batch, n^2 numbers a linear layer and task with n inputs, and
            one decomposition of that size a layer, in float64.
"""

from collections.abc import Mapping
from typing import Annotated

import torch
from jaxtyping import Float
from torch import Tensor

from polytask.core.constraints import Folder, Interval
from polytask.merging.decompositions import pseudo_inverse
from polytask.merging.learning import Learned, learned
from polytask.merging.measured import measured
from polytask.merging.session import MergeSession
from polytask.merging.vectors import Vectors


@learned("regmean", source="arXiv:2212.09849")
def regmean(
    session: MergeSession,
    *,
    off_diagonal: Annotated[float, Interval(0, 1)] = 0.9,
    batches: Annotated[int, Interval(1)] = 16,
    statistics: Annotated[str | None, Folder()] = None,
) -> Learned:
    """Linear layers by least squares, the rest by the mean.

    Args:    off_diagonal: what the inner products of different inputs are multiplied by.
             batches: of each task.
             statistics: where the inner products are kept, to be measured once.
    """
    grams = measured(session, "regmean", statistics, {"batches": batches}, lambda task: _grams(session, task, batches))
    vectors, merged = session.vectors, {}
    for name in vectors.names:
        having = [task for task in vectors.tasks if name in grams[task]]
        if having:
            weights = torch.stack([vectors.model(task, name) for task in having])
            inner = torch.stack([grams[task][name] for task in having])
            merged[name] = least_squares(weights, inner, off_diagonal)
        else:
            merged[name] = mean(vectors, name)
    return Learned(
        merged=merged, facts={"linear_layers": sum(any(name in own for own in grams.values()) for name in merged)}
    )


def least_squares(
    weights: Float[Tensor, "T out in"], grams: Float[Tensor, "T in in"], off_diagonal: float
) -> Float[Tensor, "out in"]:
    """The weights that differ least from each task's on its own inputs.

    Args:    weights: the tasks' own.
             grams: inner products of their inputs.
             off_diagonal: what those of different inputs are multiplied by.
    """
    W, G = weights.double(), grams.double()
    kept = off_diagonal * G + (1 - off_diagonal) * torch.diag_embed(G.diagonal(dim1=1, dim2=2))
    centre = W.mean(0)
    away = ((W - centre) @ kept).sum(0)
    return (centre + away @ pseudo_inverse(kept.sum(0))).to(weights.dtype)


def mean(vectors: Vectors, name: str) -> Tensor:
    """Of the tasks' own tensors."""
    total = vectors.model(vectors.tasks[0], name).clone()
    for task in vectors.tasks[1:]:
        total += vectors.model(task, name)
    return total / len(vectors.tasks)


def _grams(session: MergeSession, task: str, batches: int) -> dict[str, Tensor]:
    """weight -> X^T X over the batches, summed in float64."""
    own: Mapping[str, Tensor] = session.vectors.expert(task)
    sums: dict[str, Tensor] = {}
    for number in range(batches):
        for name, inputs in session.linear_inputs(own, task, session.batch(task, number)).items():
            inner = (inputs.T @ inputs).double()
            sums[name] = sums[name] + inner if name in sums else inner
    return sums
