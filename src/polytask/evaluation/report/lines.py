"""Lines of a figure: the mean over seeds at each step, and the range that the seeds span."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from polytask.evaluation.report.reading import Points


@dataclass(frozen=True)
class Line:
    """Attributes are by point. `low` and `high` are the lowest and highest seed; equal to the mean for one seed."""

    steps: tuple[int, ...]
    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    seeds: int

    @property
    def is_constant(self) -> bool:
        return bool(self.mean) and min(self.low) == max(self.high)


def line(streams: Sequence[Points]) -> Line | None:
    """One line of several seeds; a step that only some reached is the mean of these. None without a point."""
    values: dict[int, list[float]] = {}
    for points in streams:
        for step, value in points.items():
            if math.isfinite(value):
                values.setdefault(step, []).append(value)
    if not values:
        return None
    steps = sorted(values)
    means = tuple(math.fsum(values[step]) / len(values[step]) for step in steps)
    lows, highs = tuple(min(values[step]) for step in steps), tuple(max(values[step]) for step in steps)
    return Line(tuple(steps), means, lows, highs, max(map(len, values.values())))


def overall_mean(streams: Iterable[Points]) -> float | None:
    """The mean over all points of all seeds."""
    values = [value for points in streams for value in points.values() if math.isfinite(value)]
    return math.fsum(values) / len(values) if values else None
