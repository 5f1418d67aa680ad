"""Rules on losses: one backward pass of the weighted sum, over every parameter."""

from collections.abc import Mapping

from torch import Tensor

from polytask.balancing import distribution
from polytask.balancing.accumulation import accumulate, infinite, set_aside, usable_graph
from polytask.balancing.engine import Step
from polytask.balancing.exact import distributed_gradients
from polytask.balancing.group_rules import GroupRules
from polytask.balancing.report import BackwardReport
from polytask.core.errors import NotFinite


def weigh_losses(step: Step, rules: GroupRules) -> BackwardReport:
    """Adds the gradient of the weighted sum to `.grad`; nothing if it is not finite."""
    weights = rules.weights("all", step.tasks, {"losses": step.values, **step.more}, step.priority)
    parts = [
        step.losses[task] if weight == 1.0 else step.losses[task] * weight
        for task, weight in zip(step.tasks, weights.tolist(), strict=True)
        if task in step.losses
    ]
    total = sum(parts[1:], start=parts[0]) if parts else None
    trainable = step.trainable
    if distribution.active():
        grads = distributed_gradients(total, step.tasks, trainable, step.number)
        skipped = _overflows(step, grads)
        for name, grad in grads.items():
            accumulate(trainable[name], grad)
    else:
        assert total is not None  # on one process every present task is local
        with usable_graph(f"tasks {', '.join(step.tasks)}", step.number), set_aside(trainable.values()):
            total.backward()
            grads = {name: parameter.grad for name, parameter in trainable.items() if parameter.grad is not None}
            skipped = _overflows(step, grads)
    return BackwardReport(step.tasks, step.values, {"all": weights}, skipped=skipped)


def _overflows(step: Step, grads: Mapping[str, Tensor]) -> bool:
    """True if some gradient is not finite and a GradScaler will see it; NotFinite if there is no scaler."""
    bad = infinite(grads)
    if bad and step.factor is None:
        raise NotFinite(f"the gradient of {bad[0]!r} is not finite at step {step.number}, though the losses are")
    return bool(bad)
