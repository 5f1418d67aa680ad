"""Checks of claims, both ways: what a rule claims holds on every example, what it does not claim fails on one."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch

from polytask.core.noise import Noise
from polytask.core.rules import CLAIMS, RuleSpec
from polytask.testing.examples import Example
from polytask.testing.trial import outcome, suited

TOLERANCE = 1e-6  # of a claim that holds, relative to the longest vector
ROUNDING = 1e-7  # squared lengths come from a Gram matrix, so lengths are known to the root of its precision
MARGIN = 1e-4  # by which a counter-example must miss

# Each measure says by how much the claim is missed on an example; 0 where it says nothing.
Measure = Callable[[RuleSpec, Example], float]


def permutation(spec: RuleSpec, example: Example) -> float:
    tasks = len(example.vectors)
    found, size = outcome(spec, example), _size(example)
    wanted = found.combined
    if "homogeneous" not in spec.claims and found.weights is not None:  # the result has a scale of its own
        size = found.terms or size
    orders = [torch.arange(tasks).flip(0), torch.from_numpy(Noise(5, tasks).permutation(tasks))]
    return _largest((outcome(spec, example, order=order).combined - wanted) / size for order in orders)


def homogeneous(spec: RuleSpec, example: Example) -> float:
    wanted = outcome(spec, example).combined
    factors = [torch.full_like(example.losses, factor) for factor in (1e-3, 7.3, 1e5)]
    return _largest(
        (outcome(spec, example, scales=factor).combined / factor[0] - wanted) / _size(example) for factor in factors
    )


def non_conflicting(spec: RuleSpec, example: Example) -> float:
    found = outcome(spec, example)
    lengths, length = example.vectors.norm(dim=1), float(found.combined.norm())
    terms = example.size if found.weights is None else found.terms
    if length <= ROUNDING * terms:  # the terms cancel: what is left points anywhere
        return 0.0
    inner = example.vectors @ found.combined / torch.where(lengths > 0, lengths, 1.0) / length
    return max(0.0, -float(inner.min()))


def nonnegative_weights(spec: RuleSpec, example: Example) -> float:
    weights = outcome(spec, example).weights
    assert weights is not None
    return max(0.0, -float(weights.min()))


def convex_weights(spec: RuleSpec, example: Example) -> float:
    weights = outcome(spec, example).weights
    assert weights is not None
    return max(0.0, -float(weights.min()), abs(float(weights.sum()) - 1))


def stationary(spec: RuleSpec, example: Example) -> float:
    return _zero_exactly_if(spec, example, ("strongly", "weakly"))


def strongly_stationary(spec: RuleSpec, example: Example) -> float:
    return _zero_exactly_if(spec, example, ("strongly",))


def linear_under_scaling(spec: RuleSpec, example: Example) -> float:
    tasks = len(example.vectors)
    a, b = (torch.from_numpy(0.1 + 3 * Noise(6, tasks, which).uniform(tasks)) for which in ("a", "b"))
    parts = outcome(spec, example, scales=a).combined + outcome(spec, example, scales=b).combined
    return _largest([(outcome(spec, example, scales=a + b).combined - parts) / _size(example)])


MEASURES: dict[str, Measure] = {
    "permutation": permutation,
    "homogeneous": homogeneous,
    "non_conflicting": non_conflicting,
    "nonnegative_weights": nonnegative_weights,
    "convex_weights": convex_weights,
    "stationary": stationary,
    "strongly_stationary": strongly_stationary,
    "linear_under_scaling": linear_under_scaling,
}
ABOUT_WEIGHTS = ("nonnegative_weights", "convex_weights")


def claim_is_right(spec: RuleSpec, claim: str) -> None:
    """A claimed property holds on every example; one that is not claimed has a counter-example."""
    if spec.tasks == 1 and claim not in spec.claims:  # most claims hold of the few examples with one task
        return
    if claim in ABOUT_WEIGHTS and spec.returns != "weights":
        assert claim not in spec.claims, f"{claim}: the rule returns no weights"
        return
    measure = MEASURES[claim]
    settings = {"": spec} | {f" with {trial}": _with_defaults(spec, trial) for trial in spec.trials}
    if claim in spec.claims:
        for setting, chosen in settings.items():
            for example in suited(spec):
                missed = measure(chosen, example)
                meaning = f"{claim} is claimed ({CLAIMS[claim]})"
                assert missed <= TOLERANCE, f"{meaning} but missed by {missed:.2g} on {example.name}{setting}"
    else:
        found = any(measure(chosen, example) > MARGIN for chosen in settings.values() for example in suited(spec))
        assert found, f"{claim} is not claimed but no counter-example was found: {CLAIMS[claim]}"


def _with_defaults(spec: RuleSpec, defaults: Mapping[str, Any]) -> RuleSpec:
    """The rule with other defaults of some parameters."""
    changed = {name: replace(spec.parameters[name], default=value) for name, value in defaults.items()}
    return replace(spec, parameters={**spec.parameters, **changed})


def _zero_exactly_if(spec: RuleSpec, example: Example, kinds: tuple[str, ...]) -> float:
    if example.stationary == "unknown" or example.size == 0:
        return 0.0
    length = float(outcome(spec, example).combined.norm())
    if example.stationary in kinds:
        return length / example.size
    lengths = example.vectors.norm(dim=1)
    return 0.0 if length > 1e-6 * float(lengths[lengths > 0].min()) else 1.0


def _size(example: Example) -> float:
    return example.size or 1.0


def _largest(differences: Iterator[torch.Tensor] | list[torch.Tensor]) -> float:
    return max((float(difference.abs().max()) for difference in differences if difference.numel()), default=0.0)


CHECKS: dict[str, Callable[[RuleSpec], None]] = {
    f"claims_{claim}": lambda spec, claim=claim: claim_is_right(spec, claim) for claim in CLAIMS
}
