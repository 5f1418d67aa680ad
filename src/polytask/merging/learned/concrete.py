"""Concrete subspace: one mask for all tasks that keeps what does not interfere, around any merge.

Source      Tang et al. 2023, arXiv:2312.06173: a shared mask is drawn from relaxed Bernoulli variables, whose logits
            are learned by two-level descent on unlabelled samples: a step of the merge within the drawn mask, then one
            of the logits on the merged model's entropy. FusionBench's documentation has the mask's formula, and its MIT
            code the order of the steps, the masks' division by their mean, and the start and rates used here.
Departures  the second level takes the first as given (no gradient through its step). The mask is put on what the merge
            gives, which for merges that are linear in the task vectors is the same as on the vectors. The mask that is
            kept is the relaxed one without noise, or the same above 1/2; with task vectors scaled by AdaMerging the
            coefficients are learned once more within it.
Cost        a step passes two batches of every task forward and backward; held are four numbers an element beside the
            models: logits, two moments of Adam, and the step's noise.
"""

from collections.abc import Mapping
from typing import Annotated, Any

import torch
from torch import Tensor

from polytask.core.constraints import Choice, Interval, RuleChoice
from polytask.core.errors import BadValue
from polytask.core.noise import Noise
from polytask.merging.by_rule import merged_by
from polytask.merging.coefficients import Each, by_task, scaled
from polytask.merging.composing import Scaled
from polytask.merging.contract import find_method
from polytask.merging.descending import LearningRate, Steps, descend, facts_of
from polytask.merging.learning import Learned, learned
from polytask.merging.masking import Given, Masked, concrete, logistic, logits_for, of_unit_mean
from polytask.merging.session import MergeSession

ADAMERGING = "adamerging"


@learned("concrete", source="arXiv:2312.06173")
def concrete_subspace(
    session: MergeSession,
    *,
    around: Annotated[str | dict[str, Any], RuleChoice()] = ADAMERGING,
    each: Each = "layer",
    start: Annotated[float, Interval()] = 0.3,
    steps: Steps = 1000,
    learning_rate: LearningRate = 1e-3,
    temperature: Annotated[float, Interval(0, open="left")] = 0.5,
    mask: Annotated[str, Choice("soft", "binary")] = "soft",
    noise: Noise,
) -> Learned:
    """A mask by least entropy of what is merged within it.

    Args:    around: adamerging, or a merge without data by name or {kind: name, and its parameters}.
             each, start: of AdaMerging's coefficients.
             steps: of the mask, and of AdaMerging within it.
             learning_rate: of Adam, for both.
             temperature: of the relaxed mask.
             mask: soft keeps the relaxed one, binary what is above 1/2.
    """
    vectors, names = session.vectors, session.trainable()
    rule = None if around == ADAMERGING else _merge_of_changes(around)
    scaling = scaled(vectors, each, start)
    by_rule = {} if rule is None else merged_by(vectors, rule, seed=noise.seed)
    inner = scaling if rule is None else Given(by_rule)
    logits = logits_for(vectors, names)
    drawn = logistic(vectors, names, noise.child(0))
    coefficients = [scaling.coefficients] if rule is None else []
    of_mask = torch.optim.Adam(list(logits.values()), lr=learning_rate)
    of_merge = torch.optim.Adam(coefficients or [torch.zeros(1, requires_grad=True)], lr=learning_rate)
    sampled = Masked(vectors, inner, logits, lambda name, own: of_unit_mean(concrete(own, temperature, drawn[name])))
    weights = session.composed(sampled)

    def entropy(task: str, batch: Any, step: int) -> Tensor:
        return session.entropy(task, session.forward(weights, task, batch))

    history = []
    for step in range(steps):
        drawn |= logistic(vectors, names, noise.child(step))
        if coefficients:
            with torch.no_grad():
                scaling.coefficients.fill_(start)
            descend(session, coefficients, entropy, steps=1, optimizer=of_merge, first=2 * step, total=3 * steps)
        leaves = list(logits.values())
        history += descend(session, leaves, entropy, steps=1, optimizer=of_mask, first=2 * step + 1, total=3 * steps)
    kept = {name: kept_mask(own.detach(), temperature, mask) for name, own in logits.items()}
    about = {**facts_of(history), "kept": share_kept(kept)}
    if rule is not None:
        return Learned(mask=kept, rule=rule, by_rule=by_rule, facts=about)
    numbers = adamerged(session, scaling, kept, start, steps=steps, learning_rate=learning_rate, first=2 * steps)
    return Learned(numbers, mask=kept, facts=about)


def adamerged(
    session: MergeSession,
    scaling: Scaled,
    mask: Mapping[str, Tensor],
    start: float,
    *,
    steps: int,
    learning_rate: float,
    first: int,
) -> dict[str, float | dict[str, float]]:
    """AdaMerging's coefficients within a mask that is given; its steps are counted from `first`."""
    with torch.no_grad():
        scaling.coefficients.fill_(start)
    weights = session.composed(Masked(session.vectors, scaling, mask, lambda name, own: own))
    optimizer = torch.optim.Adam([scaling.coefficients], lr=learning_rate)

    def entropy(task: str, batch: Any, step: int) -> Tensor:
        return session.entropy(task, session.forward(weights, task, batch))

    leaves = [scaling.coefficients]
    descend(session, leaves, entropy, steps=steps, optimizer=optimizer, first=first, total=first + steps)
    return by_task(scaling.coefficients, session.tasks, scaling.groups)


def _merge_of_changes(around: str | Mapping[str, Any]) -> dict[str, Any]:
    """The merge with its parameters; BadValue for one of the models' own values."""
    options = {"kind": around} if isinstance(around, str) else dict(around)
    pipeline = find_method(options["kind"])(**{key: value for key, value in options.items() if key != "kind"})
    if pipeline.of not in ("deltas", "either"):
        allowed = f"{ADAMERGING}, or a merge of what fine-tuning changed"
        raise BadValue("around", options["kind"], allowed, "learned merge 'concrete'")
    return options


def kept_mask(logits: Tensor, temperature: float, mask: str) -> Tensor:
    """What stays of a relaxed mask when nothing is drawn any more, soft or binary."""
    relaxed = concrete(logits, temperature)
    return of_unit_mean(relaxed if mask == "soft" else (relaxed > 0.5).float())


def share_kept(masks: Mapping[str, Tensor]) -> float:
    """Of the elements, those whose mask is not zero."""
    total = sum(mask.numel() for mask in masks.values())
    return sum(int(mask.count_nonzero()) for mask in masks.values()) / total if total else 0.0
