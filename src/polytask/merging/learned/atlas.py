"""aTLAS: a coefficient of every task vector for every parameter block, learned with few labels or none.

Source      Zhang et al. 2024, arXiv:2407.02880 (learned anisotropic scaling): the merged model is the base plus the sum
            of the task vectors, each scaled block by block, a block being a weight or a bias; the coefficients are
            learned by the task's loss, or without labels.
Departures  without labels the entropy of the predictions is minimised (the paper's unsupervised objective needs
            augmentations, which rows of any kind do not have). A task's loss is that of its own kind. The random
            partition of blocks into smaller ones is not here. The paper was to be had only in part: start, rate and
            steps are ours.
Cost        a forward and a backward pass of one batch of every task a step.
"""

from typing import Annotated, Any

from torch import Tensor

from polytask.core.constraints import Choice, Interval
from polytask.merging.coefficients import Each, learn_coefficients
from polytask.merging.composing import Composed
from polytask.merging.descending import LearningRate, Steps
from polytask.merging.learning import Learned, learned
from polytask.merging.session import MergeSession


@learned("atlas", source="arXiv:2407.02880", labels=lambda objective: objective == "supervised")
def atlas(
    session: MergeSession,
    *,
    objective: Annotated[str, Choice("supervised", "unsupervised")] = "supervised",
    each: Each = "tensor",
    start: Annotated[float, Interval()] = 0.3,
    steps: Steps = 300,
    learning_rate: LearningRate = 0.01,
) -> Learned:
    """Coefficients by least loss, or by least entropy.

    Args:    objective: supervised reads labels; unsupervised minimises entropy.
             each: what one coefficient of a task is for.
             start: of every coefficient.
             steps: of Adam, each on one batch of every task.
             learning_rate: of Adam.
    """

    def value(weights: Composed, task: str, batch: Any) -> Tensor | None:
        outputs = session.forward(weights, task, batch)
        return session.loss(task, outputs, batch) if objective == "supervised" else session.entropy(task, outputs)

    return learn_coefficients(session, value, each=each, start=start, steps=steps, learning_rate=learning_rate)
