"""DivMerge: coefficients that keep the merged model's predictions close to each expert's on its own task's inputs.

Source      Touayouch et al. 2025, arXiv:2509.02108: coefficients of the task vectors, one a task or one a task and
            layer, by least divergence between the predictions of each fine-tuned model and of the merged one on the
            inputs of its task, summed over tasks; Jensen-Shannon, or Kullback-Leibler from expert to merged model.
Departures  a head of several labels takes the mean over its labels; heads of numbers predict no distribution and are
            refused. The paper was to be had only in part: start, rate and steps are ours.
Cost        a step passes one batch of every task forward twice (once through the expert) and backward once.
"""

from typing import Annotated, Any

import torch
from torch import Tensor

from polytask.core.constraints import Choice, Interval
from polytask.merging.coefficients import Each, learn_coefficients
from polytask.merging.composing import Composed
from polytask.merging.descending import LearningRate, Steps
from polytask.merging.distributions import jensen_shannon, kullback_leibler
from polytask.merging.learning import Learned, learned
from polytask.merging.session import MergeSession

_DIVERGENCES = {"jensen_shannon": jensen_shannon, "kullback_leibler": kullback_leibler}


@learned("divmerge", source="arXiv:2509.02108")
def divmerge(
    session: MergeSession,
    *,
    divergence: Annotated[str, Choice("jensen_shannon", "kullback_leibler")] = "jensen_shannon",
    each: Each = "layer",
    start: Annotated[float, Interval()] = 0.3,
    steps: Steps = 300,
    learning_rate: LearningRate = 0.01,
) -> Learned:
    """Coefficients by least divergence from the experts.

    Args:    divergence: between the predictions.
             each: what one coefficient of a task is for.
             start: of every coefficient.
             steps: of Adam, each on one batch of every task.
             learning_rate: of Adam.
    """
    measure = _DIVERGENCES[divergence]

    def value(weights: Composed, task: str, batch: Any) -> Tensor:
        merged = session.forward(weights, task, batch)
        with torch.no_grad():
            expert = session.forward(session.vectors.expert(task), task, batch)
        found = [measure(expert[head], own, session.labelled(task, head, own)) for head, own in merged.items()]
        return torch.stack(found).sum()

    return learn_coefficients(session, value, each=each, start=start, steps=steps, learning_rate=learning_rate)
