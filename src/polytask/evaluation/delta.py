"""How far a variant is from the single-task baseline: intervals over seeds, paired differences, delta-m.

delta-m of one seed s, in percent, positive is better:

    delta_m(s) = 100 / T * sum over tasks t of (-1)^{l_t} (M_{t,s} - B_{t,s}) / |mean over seeds of B_t|

M is the variant's metric, B the baseline's, l_t is 1 where lower is better and else 0. The numerator is paired by seed,
so what the two runs share (the split, the order of rows) cancels; the scale is the baseline's mean over the paired
seeds, so the mean of delta_m(s) is the familiar delta-m of the mean metrics (Maninis et al., CVPR 2019, equation 4),
and a seed with a baseline near zero does not dominate. The interval is Student's over the seeds.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TypeGuard

FEW_SEEDS = 5
"""Fewer seeds than this are marked wherever an interval is shown."""


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds.

    Attributes:
        mean: None when no seed has a value: the quantity is undefined.
        half_width: half of the 95 % Student t interval; None with fewer than two values.
        count: seeds with a value.
        undefined: seeds without one.
    """

    mean: float | None
    half_width: float | None
    count: int
    undefined: int = 0

    @property
    def low(self) -> float | None:
        return None if self.mean is None or self.half_width is None else self.mean - self.half_width

    @property
    def high(self) -> float | None:
        return None if self.mean is None or self.half_width is None else self.mean + self.half_width


class Verdict(Enum):
    """What the paired differences to the baseline say."""

    BETTER = "better"
    WORSE = "worse"
    WITHIN_NOISE = "within noise"
    ONE_SEED = "one seed, no interval"
    UNDEFINED = "undefined"


@dataclass(frozen=True)
class Delta:
    """delta-m of one variant.

    Attributes:
        estimate: in percent; undefined when no task could be used or no seed is shared with the baseline.
        tasks: tasks it averages over.
        left_out: tasks without a value in some shared seed, or whose baseline mean is 0.
        seeds: seeds that the variant and the baseline share.
    """

    estimate: Estimate
    tasks: tuple[str, ...]
    left_out: tuple[str, ...]
    seeds: tuple[int, ...]


def estimate(values: Sequence[float | None], confidence: float = 0.95) -> Estimate:
    """Mean and Student t interval over seeds; `None`, NaN and infinite values count as undefined.

    >>> estimate([1.0, 2.0, 3.0, None])
    Estimate(mean=2.0, half_width=2.484..., count=3, undefined=1)
    """
    from scipy.special import stdtrit

    defined = [value for value in values if value is not None and math.isfinite(value)]
    n, undefined = len(defined), len(values) - len(defined)
    if n == 0:
        return Estimate(None, None, 0, undefined)
    mean = math.fsum(defined) / n
    if n == 1:
        return Estimate(mean, None, 1, undefined)
    variance = math.fsum((value - mean) ** 2 for value in defined) / (n - 1)
    quantile = float(stdtrit(n - 1, 0.5 + confidence / 2))
    return Estimate(mean, quantile * math.sqrt(variance / n), n, undefined)


def paired_differences(values: Mapping[int, float | None], baseline: Mapping[int, float | None]) -> list[float | None]:
    """values[seed] - baseline[seed] for the seeds that both have, ascending; None where either is undefined."""
    pairs = [(values[seed], baseline[seed]) for seed in sorted(values) if seed in baseline]
    return [a - b if _finite(a) and _finite(b) else None for a, b in pairs]


def verdict(difference: Estimate, higher_is_better: bool) -> Verdict:
    """Better or worse only where the interval of the paired differences excludes zero."""
    if difference.mean is None:
        return Verdict.UNDEFINED
    if difference.low is None or difference.high is None:
        return Verdict.ONE_SEED
    if difference.low <= 0 <= difference.high:
        return Verdict.WITHIN_NOISE
    return Verdict.BETTER if (difference.mean > 0) == higher_is_better else Verdict.WORSE


def delta_m(
    values: Mapping[str, Mapping[int, float | None]],
    baseline: Mapping[str, Mapping[int, float | None]],
    higher_is_better: Mapping[str, bool],
) -> Delta:
    """delta-m with its interval over seeds; the formula is at the top of this module.

    Args:
        values: task -> seed -> the variant's metric; None is undefined.
        baseline: the same of the single-task models.
        higher_is_better: task -> direction; its order is the order of the tasks.
    """
    seeds = _shared_seeds(values, baseline, higher_is_better)
    used, relative = [], []
    for task, higher in higher_is_better.items():
        changes = _relative_changes(values.get(task, {}), baseline.get(task, {}), seeds, 1 if higher else -1)
        if changes is not None:
            used.append(task)
            relative.append(changes)
    by_seed = [math.fsum(changes) / len(used) for changes in zip(*relative, strict=True)]
    left_out = tuple(task for task in higher_is_better if task not in used)
    return Delta(estimate(by_seed), tuple(used), left_out, tuple(seeds))


def relative_change(
    values: Mapping[int, float | None], baseline: Mapping[int, float | None], higher_is_better: bool
) -> Estimate:
    """One task's term of delta-m, in percent, positive is better."""
    seeds = [seed for seed in sorted(values) if seed in baseline]
    changes = _relative_changes(values, baseline, seeds, 1 if higher_is_better else -1)
    return estimate(changes) if changes else Estimate(None, None, 0, len(seeds))


def _relative_changes(
    values: Mapping[int, float | None], baseline: Mapping[int, float | None], seeds: Sequence[int], sign: int
) -> list[float] | None:
    """Percent by seed; None when a seed lacks a value or the baseline's mean is 0."""
    pairs = [(values.get(seed), baseline.get(seed)) for seed in seeds]
    finite = [(a, b) for a, b in pairs if _finite(a) and _finite(b)]
    if not pairs or len(finite) < len(pairs):
        return None
    scale = abs(math.fsum(b for _, b in finite) / len(finite))
    if scale == 0:
        return None
    return [100 * sign * (a - b) / scale for a, b in finite]


def _shared_seeds(
    values: Mapping[str, Mapping[int, float | None]],
    baseline: Mapping[str, Mapping[int, float | None]],
    tasks: Mapping[str, bool],
) -> list[int]:
    variant_seeds = {seed for task in tasks for seed in values.get(task, {})}
    baseline_seeds = {seed for task in tasks for seed in baseline.get(task, {})}
    return sorted(variant_seeds & baseline_seeds)


def _finite(value: float | None) -> TypeGuard[float]:
    return value is not None and math.isfinite(value)
