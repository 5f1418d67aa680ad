"""DAM: two masks, one for what tasks share and one against backdoors, learned in turn on clean and disturbed inputs.

Source      Yang et al. 2024, arXiv:2410.13910 (Defense-Aware Merging): a task-shared mask and a backdoor-detection mask
            are learned in turn, by two-level descent on unlabelled samples, for the merged model's performance plus a
            weight times its safety. The order of the steps, the disturbance that is learned to change predictions, and
            the entropies that stand for both aims are as in FusionBench's MIT code, which learns one mask for both.
Departures  the paper was to be had only in part. The disturbance is not added to pixels but to the first layer's
            output, one for each task, within `radius` times its size, so that text and tables have one too. The
            task-shared mask has performance as its aim, the backdoor-detection mask both; their product is kept.
            `safety: agreement` asks for the label of the undisturbed input instead of certainty.
Cost        a step passes four batches of every task forward and backward, two of them twice; held are seven numbers an
            element beside the models: two logits, their moments of Adam, the step's noise.
"""

from typing import Annotated, Any

import torch
from torch import Tensor

from polytask.core.constraints import Choice, Interval
from polytask.core.noise import Noise
from polytask.merging.coefficients import Each, scaled
from polytask.merging.descending import LearningRate, Steps, descend, facts_of
from polytask.merging.distributions import disagreement
from polytask.merging.learned.concrete import adamerged, kept_mask, share_kept
from polytask.merging.learning import Learned, learned
from polytask.merging.masking import Masked, concrete, logistic, logits_for, of_unit_mean
from polytask.merging.session import MergeSession

Shifts = dict[str, tuple[str, Tensor, float]]
"""task -> (first layer, what is added to its output, how far each number may go)."""


@learned("dam", source="arXiv:2410.13910")
def dam(
    session: MergeSession,
    *,
    each: Each = "layer",
    start: Annotated[float, Interval()] = 0.3,
    weight: Annotated[float, Interval(0)] = 0.1,
    safety: Annotated[str, Choice("entropy", "agreement")] = "entropy",
    radius: Annotated[float, Interval(0)] = 1.0,
    steps: Steps = 1000,
    learning_rate: LearningRate = 1e-3,
    shift_rate: LearningRate = 0.01,
    temperature: Annotated[float, Interval(0, open="left")] = 0.5,
    noise: Noise,
) -> Learned:
    """A mask that keeps what tasks share and leaves out what a disturbance acts through.

    Args:    each, start: of AdaMerging's coefficients.
             weight: of safety beside performance.
             safety: of disturbed inputs, their entropy, or how far they are from the undisturbed one's label.
             radius: of the disturbance, in units of the first layer's root mean square.
             steps: of the masks, and of AdaMerging within them.
             learning_rate, shift_rate: of Adam; for the masks and coefficients, and for the disturbance.
             temperature: of the relaxed masks.
    """
    vectors, names = session.vectors, session.trainable()
    scaling = scaled(vectors, each, start)
    shared, safe = logits_for(vectors, names), logits_for(vectors, names)
    drawn = {kind: logistic(vectors, names, noise.child(kind, 0)) for kind in ("shared", "safe")}
    made = {
        kind: lambda name, own, kind=kind: of_unit_mean(concrete(own, temperature, drawn[kind][name])) for kind in drawn
    }
    inner = Masked(vectors, scaling, shared, made["shared"])
    weights = session.composed(Masked(vectors, inner, safe, made["safe"]))
    shifts = _shifts(session, radius)

    def performance(task: str, batch: Any, step: int) -> Tensor:
        return session.entropy(task, session.forward(weights, task, batch))

    def unmoved(task: str, batch: Any, step: int) -> Tensor:
        return -_disagreement(session, weights, shifts, task, batch)

    def safe_performance(task: str, batch: Any, step: int) -> Tensor:
        name, added, _ = shifts[task]
        disturbed = session.forward(weights, task, batch, shift=(name, added.detach()))
        if safety == "entropy":
            return performance(task, batch, step) + weight * session.entropy(task, disturbed)
        return performance(task, batch, step) + weight * _disagreement(session, weights, shifts, task, batch)

    levels = [
        ([scaling.coefficients], performance, learning_rate, [weights]),
        ([added for _, added, _ in shifts.values()], unmoved, shift_rate, []),
        (list(shared.values()), performance, learning_rate, [weights]),
        (list(safe.values()), safe_performance, learning_rate, [weights]),
    ]
    optimizers = [torch.optim.Adam(leaves, lr=rate) for leaves, _, rate, _ in levels]
    history, total = [], 5 * steps
    for step in range(steps):
        for kind in drawn:
            drawn[kind] = logistic(vectors, names, noise.child(kind, step))
        with torch.no_grad():
            scaling.coefficients.fill_(start)
        for number, ((leaves, objective, _, through), optimizer) in enumerate(zip(levels, optimizers, strict=True)):
            values = descend(
                session,
                leaves,
                objective,
                steps=1,
                optimizer=optimizer,
                first=4 * step + number,
                total=total,
                through=through,
            )
            _within(shifts)
        history += values
    kept = {name: _product(shared[name], safe[name], temperature) for name in names}
    numbers = adamerged(session, scaling, kept, start, steps=steps, learning_rate=learning_rate, first=4 * steps)
    return Learned(numbers, mask=kept, facts={**facts_of(history), "kept": share_kept(kept)})


def _product(shared: Tensor, safe: Tensor, temperature: float) -> Tensor:
    return kept_mask(shared.detach(), temperature, "soft") * kept_mask(safe.detach(), temperature, "soft")


def _shifts(session: MergeSession, radius: float) -> Shifts:
    """Of the last axis where the output's length may vary from batch to batch, else of all but the rows."""
    found: Shifts = {}
    for task in session.tasks:
        name, output = session.first_layer(session.vectors.expert(task), task, session.batch(task, 0))
        shape = output.shape[-1:] if output.dim() == 3 else output.shape[1:]
        size = float(output.square().mean().sqrt())
        added = torch.zeros(shape, dtype=output.dtype, device=output.device, requires_grad=True)
        found[task] = (name, added, radius * size)
    return found


def _within(shifts: Shifts) -> None:
    with torch.no_grad():
        for _, added, most in shifts.values():
            added.clamp_(-most, most)


def _disagreement(session: MergeSession, weights: Any, shifts: Shifts, task: str, batch: Any) -> Tensor:
    """Of the disturbed inputs' predictions with the undisturbed ones' labels."""
    name, added, _ = shifts[task]
    disturbed = session.forward(weights, task, batch, shift=(name, added))
    with torch.no_grad():
        clean = session.forward(weights, task, batch)
    found = [disagreement(own, clean[head], session.labelled(task, head, own)) for head, own in disturbed.items()]
    return torch.stack(found).mean()
