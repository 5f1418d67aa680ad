"""Twin-Merging: shared weights by task arithmetic, thin factors of what each expert has beyond them, and a router.

Source      Lu et al. 2024, arXiv:2406.15479: the merged model is the shared expert; each expert's difference to it is
            its exclusive knowledge, compressed by a truncated singular value decomposition; for each input a router
            that reads its last embedding under the shared expert gives the numbers with which these are added.
Departures  the paper was read in its abstract and in summaries. Exclusive knowledge is kept of linear layers; other
            tensors (embeddings, norms, biases) are the shared expert's, for each row's weights are then never formed.
            The router is an MLP with one hidden layer, trained by cross-entropy to tell from which task a row comes;
            the embedding is what the first layer of a head reads, the mean over positions where it has some.
Cost        a forward pass of `batches` batches of every task, a singular value decomposition for each layer and task.
"""

from collections.abc import Mapping
from typing import Annotated

import torch
from torch import Tensor
from torch.nn import functional as F

from polytask.core.constraints import Interval
from polytask.core.noise import Noise
from polytask.merging.coefficients import columns
from polytask.merging.composing import Scaled
from polytask.merging.decompositions import thin_svd
from polytask.merging.descending import LearningRate, Steps
from polytask.merging.learning import Learned, learned
from polytask.merging.routers import EmbeddingRouter, Layers, detached, drawn, scores
from polytask.merging.routing import ThinExperts, embedding, embedding_of
from polytask.merging.session import MergeSession, require_finite_outputs


@learned("twin_merging", source="arXiv:2406.15479")
def twin_merging(
    session: MergeSession,
    *,
    noise: Noise,
    scale: Annotated[float, Interval()] = 0.3,
    rank: Annotated[int, Interval(1)] = 16,
    hidden: Annotated[int, Interval(1)] = 64,
    batches: Annotated[int, Interval(1)] = 16,
    steps: Steps = 300,
    learning_rate: LearningRate = 0.01,
) -> Learned:
    """The shared expert's coefficients, the factors and the router.

    Args:    scale: of the sum of the task vectors in the shared expert.
             rank: of the factors of each linear layer and task.
             hidden: width of the router's hidden layer.
             batches: of each task, whose rows the router is trained on.
             steps, learning_rate: of the router's training, Adam on all these rows at once.
    """
    linear = [f"{name}.weight" for name in session.linear_layers()]
    rows, owners = _embeddings(session, linear, scale, batches)
    layers, facts = _trained(rows, owners, len(session.tasks), hidden, steps, learning_rate, noise)
    router = EmbeddingRouter({name: _experts(session, name, scale, rank) for name in linear}, layers)
    return Learned(dict.fromkeys(session.tasks, scale), router=router.tensors(), facts=facts)


def _embeddings(session: MergeSession, linear: list[str], scale: float, batches: int) -> tuple[Tensor, Tensor]:
    """Of every row under the shared expert, and the number of its task."""
    groups = columns(session.vectors, "task")
    coefficients = torch.full((len(session.tasks), 1), scale)
    shared = session.composed(Scaled(session.vectors, coefficients, groups))
    found, owners = [], []
    for number, task in enumerate(session.tasks):
        for count in range(batches):
            with torch.no_grad(), embedding(session.samples.module(task), linear) as seen:
                require_finite_outputs(session.forward(shared, task, session.batch(task, count)), task)
            found.append(embedding_of(seen).float().clone())
            owners.append(torch.full((len(found[-1]),), number))
        session.say(number + 1, len(session.tasks))
    return torch.cat(found), torch.cat(owners)


def _trained(
    rows: Tensor, owners: Tensor, tasks: int, hidden: int, steps: int, learning_rate: float, noise: Noise
) -> tuple[Layers, dict[str, float]]:
    """The router's layers, and how well they tell the tasks apart."""
    width = rows.shape[1]
    leaves = (
        drawn(noise.child("hidden"), hidden, width),
        torch.zeros(hidden, requires_grad=True),
        drawn(noise.child("output"), tasks, hidden),
        torch.zeros(tasks, requires_grad=True),
    )
    optimizer = torch.optim.Adam(leaves, lr=learning_rate)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = F.cross_entropy(scores(leaves, rows), owners)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    layers = detached(leaves)
    right = (scores(layers, rows).argmax(1) == owners).double().mean()
    return layers, {"router_loss_first": losses[0], "router_loss_last": losses[-1], "router_accuracy": float(right)}


def _experts(session: MergeSession, name: str, scale: float, rank: int) -> ThinExperts:
    """What each expert has beyond the shared weights; 0 where that is of lower rank."""
    vectors = session.vectors
    deltas: Mapping[str, Tensor] = {task: vectors.row(task, name) for task in vectors.tasks if vectors.has(task, name)}
    shared = scale * torch.stack(list(deltas.values())).sum(0)
    height, width = shared.shape
    left = torch.zeros(len(vectors.tasks), height, rank, dtype=shared.dtype)
    right = torch.zeros(len(vectors.tasks), rank, width, dtype=shared.dtype)
    for number, task in enumerate(vectors.tasks):
        if task in deltas:
            U, S, Vh = thin_svd(deltas[task] - shared, rank)
            left[number, :, : len(S)] = U * S.sqrt()
            right[number, : len(S)] = S.sqrt()[:, None] * Vh
    return ThinExperts(left, right)
