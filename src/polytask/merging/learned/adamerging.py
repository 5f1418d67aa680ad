"""AdaMerging: coefficients of the task vectors that make the merged model's predictions certain, without labels.

Source      Yang et al. 2023, arXiv:2310.02575: task-wise and layer-wise coefficients of task arithmetic, found by
            minimising the entropy of the merged model's predictions on unlabelled samples of every task with Adam.
Departures  the samples are of the validation split (the paper's are of the test split; nothing here looks at that). A
            head of several labels takes the mean entropy of the labels. With `each: tensor` a coefficient a tensor.
            The paper's text was to be had only in part: start, rate, steps and batch are as FusionBench documents them.
Cost        a forward and a backward pass of one batch of every task a step.
"""

from typing import Annotated, Any

from torch import Tensor

from polytask.core.constraints import Interval
from polytask.merging.coefficients import Each, learn_coefficients
from polytask.merging.composing import Composed
from polytask.merging.descending import LearningRate, Steps
from polytask.merging.learning import Learned, learned
from polytask.merging.session import MergeSession


@learned("adamerging", source="arXiv:2310.02575")
def adamerging(
    session: MergeSession,
    *,
    each: Each = "layer",
    start: Annotated[float, Interval()] = 0.3,
    steps: Steps = 1000,
    learning_rate: LearningRate = 1e-3,
) -> Learned:
    """Coefficients by least entropy.

    Args:    each: what one coefficient of a task is for.
             start: of every coefficient.
             steps: of Adam, each on one batch of every task.
             learning_rate: of Adam.
    """

    def entropy(weights: Composed, task: str, batch: Any) -> Tensor:
        return session.entropy(task, session.forward(weights, task, batch))

    return learn_coefficients(session, entropy, each=each, start=start, steps=steps, learning_rate=learning_rate)
