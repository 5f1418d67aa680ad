"""Fisher merging: every element is an average in which the models that need it as it is count most.

Source      Matena and Raffel 2022, arXiv:2111.09832: the average of the models weighted, element by element, by the
            diagonal of their Fisher information F = E_x E_y~p(y|x) (d log p(y|x) / d theta)^2; the expectation over y
            is exact.
Departures  every model counts the same. Outputs that are numbers are normal with variance 1. Padded rows, masks and
            sequences of labels have no place in it: a head gives one label, or labels that are independent, a row. The
            paper's text was not at hand.
Cost        a backward pass a row and label (a class, but one), each through the graph of its batch: a batch size of 1
            is cheapest. 4 bytes an element and task.
"""

from typing import Annotated

import torch
from jaxtyping import Float
from torch import Tensor

from polytask.core.constraints import Folder, Interval
from polytask.merging.fisher_information import add_information
from polytask.merging.learning import Learned, learned
from polytask.merging.measured import measured
from polytask.merging.session import MergeSession, require_finite_outputs


@learned("fisher", source="arXiv:2111.09832")
def fisher(
    session: MergeSession,
    *,
    batches: Annotated[int, Interval(1)] = 64,
    least: Annotated[float, Interval(0, open="left")] = 1e-6,
    statistics: Annotated[str | None, Folder()] = None,
) -> Learned:
    """The average weighted by Fisher information.

    Args:    batches: of each task.
             least: Fisher information that every element has, so that one which no model needs is the plain mean.
             statistics: where the Fisher information is kept, to be measured once.
    """
    found = measured(session, "fisher", statistics, {"batches": batches}, lambda task: diagonal(session, task, batches))
    vectors, merged = session.vectors, {}
    for name in vectors.names:
        models = torch.stack([vectors.model(task, name) for task in vectors.tasks])
        weights = torch.stack([found[task][name] for task in vectors.tasks]).clamp(min=least)
        merged[name] = weighted_mean(models, weights)
    return Learned(merged=merged)


def weighted_mean(models: Float[Tensor, "T *shape"], weights: Float[Tensor, "T *shape"]) -> Float[Tensor, "*shape"]:
    """sum_t w_t x_t / sum_t w_t, element by element."""
    return ((models * weights).sum(0) / weights.sum(0)).to(models.dtype)


def diagonal(session: MergeSession, task: str, batches: int) -> dict[str, Tensor]:
    """name -> the mean over rows of the squared slopes of the log-probability."""
    own = {name: value.clone().requires_grad_() for name, value in session.vectors.expert(task).items()}
    sums = {name: torch.zeros_like(value) for name, value in own.items()}
    rows = 0
    for number in range(batches):
        batch = session.batch(task, number)
        outputs = session.forward(own, task, batch)
        require_finite_outputs(outputs, task)
        rows += len(next(iter(outputs.values())))
        for head, values in outputs.items():
            add_information(sums, own, values, session.kind(task, head, values), f"fisher, task {task!r}")
    return {name: total / rows for name, total in sums.items()}
