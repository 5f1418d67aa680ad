"""Groups of small figures under one heading: what is drawn, its legend, and what a reader sees in it, in words."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from polytask.evaluation.delta import Estimate
from polytask.evaluation.formatting import counted, decimals, fixed, listed, percent
from polytask.evaluation.report.figures import (
    CostPoint,
    Look,
    Spec,
    cost_figure,
    differences_figure,
    lines_figure,
    looks,
)
from polytask.evaluation.report.heat_maps import matrix_figure
from polytask.evaluation.report.lines import Line, line, overall_mean
from polytask.evaluation.report.reading import Events, Points, Variant
from polytask.evaluation.table import Comparison

MOST_TASKS = 12
"""Small figures of one panel; the rest is in the table."""

MOST_PAIRS = 6
"""Lines of cosines in one figure."""

MOST_TASKS_OF_A_MATRIX = 40
"""With more, the names of a matrix would cover one another."""


@dataclass(frozen=True)
class Plot:
    """One figure. `label` says in plain text what it shows, for those who cannot see it."""

    heading: str
    label: str
    spec: Spec


@dataclass(frozen=True)
class Panel:
    """Figures that share a legend. `caption` is HTML. `wide` gives each figure the whole width."""

    title: str
    caption: str
    look: Mapping[str, Look]
    plots: tuple[Plot, ...]
    wide: bool = False


@dataclass(frozen=True)
class DrawnTask:
    """A task of the learning curves; `arrow` is empty while nobody has said which direction is better."""

    name: str
    metric: str
    arrow: str


def differences_panel(table: Comparison) -> Panel | None:
    """Each task's term of delta-m, with its interval."""
    tasks = _most_changed(table)
    look = looks([row.name for row in table.rows], table.baseline)
    points: dict[str, list[tuple[float, float, float] | None]] = {}
    for row in table.variants:
        changes = [row.scores[task].relative for task in tasks]
        points[row.name] = [None if c is None or c.mean is None else _with_interval(c) for c in changes]
    if not any(value for values in points.values() for value in values):
        return None
    names = [row.name for row in table.variants]
    label = f"Change of each task against the single-task baseline in percent, for {listed(names)}. " + " ".join(
        f"{row.name}: {', '.join(f'{task} {percent(_mean(row.scores[task].relative))}' for task in tasks)}."
        for row in table.variants
    )
    caption = "Right of the line is better than a model of its own, whichever way the metric runs. Bars: 95 % interval."
    plot = Plot("Change by task", label, differences_figure(tasks, points, look))
    caption += most_changed_words(len(tasks), len(table.tasks))
    return Panel("Who gains, who pays", caption, {name: look[name] for name in points}, (plot,), wide=True)


def cost_panel(table: Comparison) -> Panel | None:
    """Seconds against delta-m; the baseline is at 0 by definition."""
    points = []
    for row in table.rows:
        value = row.delta.estimate if row.delta else None
        delta = 0.0 if row.is_baseline else value.mean if value else None
        if row.seconds is not None and delta is not None:
            points.append(CostPoint(row.name, row.seconds, delta, value.half_width if value else None, row.parameters))
    if len(points) < 2:
        return None
    look = looks([row.name for row in table.rows], table.baseline)
    label = "delta-m over seconds of training: " + "; ".join(
        f"{point.name} {point.seconds:.3g} s, {percent(point.delta)}" for point in points
    )
    caption = (
        "Up is better, left is cheaper; a mark's area grows with the parameters. Seconds of one seed, all its tasks."
    )
    return Panel(
        "What it costs",
        caption,
        {},
        (Plot("Cost and delta-m", label, cost_figure(points, look, table.baseline)),),
        wide=True,
    )


def curves_panel(
    variants: Sequence[Variant], tasks: Sequence[DrawnTask], look: Mapping[str, Look], shown: str
) -> Panel | None:
    """The validation metric by step, a figure a task; `shown` says which tasks these are, if not all."""
    plots, empty = [], []
    for task in tasks:
        lines = _by_variant(variants, lambda stream, task=task: stream.metrics.get(task.name, {}).get(task.metric, {}))
        if not lines:
            empty.append(task.name)
            continue
        places = decimals([row.mean[-1] for row in lines.values()])
        ends = "; ".join(f"{name} ends at {fixed(row.mean[-1], places)}" for name, row in lines.items())
        heading = f"{escape(task.name)} <small>{escape(task.metric)} {task.arrow}</small>"
        plots.append(
            Plot(
                heading,
                f"Validation {task.metric} of {task.name} by step: {ends}.",
                lines_figure(lines, look, late=len(lines) > 1),
            )
        )
    if not plots:
        return None
    cut = any("range" in plot.spec["layout"]["yaxis"] for plot in plots)
    axes = " The value axes leave out the steep first fifth of the steps." if cut else ""
    caption = f"The validation metric while training.{axes}{_seeds(variants)}{shown}"
    caption += f" Never defined: {escape(listed(empty))}." if empty else ""
    return Panel("Learning curves", caption, {v.name: look[v.name] for v in variants}, tuple(plots))


def losses_panel(variants: Sequence[Variant], tasks: Sequence[DrawnTask], look: Mapping[str, Look]) -> Panel | None:
    """The training loss by step, a figure a task; drawn for runs alone, where no baseline explains a curve."""
    plots = []
    for task in tasks:
        lines = _by_variant(variants, lambda stream, task=task: stream.losses.get(task.name, {}))
        if lines:
            ends = "; ".join(f"{name} ends at {row.mean[-1]:.3g}" for name, row in lines.items())
            label = f"Training loss of {task.name} by step: {ends}."
            plots.append(Plot(escape(task.name), label, lines_figure(lines, look)))
    if not plots:
        return None
    caption = f"The training loss of each task before weighting.{_thinned(variants)}"
    return Panel("Training losses", caption, {v.name: look[v.name] for v in variants}, tuple(plots))


def weights_panel(variants: Sequence[Variant], tasks: Sequence[str]) -> Panel | None:
    """Loss weights by step, a figure a variant; a variant that never moves them is named instead."""
    drawn = tasks[:MOST_TASKS]
    look = looks(drawn, first=3)
    plots, constant = [], []
    for variant in variants:
        lines = _by_task(variant, drawn, lambda stream: stream.weights)
        if not lines or variant.is_baseline:
            continue
        if all(row.is_constant for row in lines.values()):
            constant.append(variant.name)
            continue
        label = f"Loss weights of {variant.name} by step; at the end: {_ends(lines)}."
        plots.append(Plot(escape(variant.name), label, lines_figure(lines, look)))
    if not plots:
        return None
    still = f" Constant under {escape(listed(constant))}, so not drawn." if constant else ""
    first = f" The first {len(drawn)} of {len(tasks):,} tasks are drawn." if len(drawn) < len(tasks) else ""
    caption = f"What each task's loss was multiplied by.{still}{first}{_thinned(variants)}{_seeds(variants)}"
    return Panel("Loss weights", caption, look, tuple(plots))


def sharpness_panel(variants: Sequence[Variant], tasks: Sequence[str]) -> Panel | None:
    """How much each task's loss rises around the parameters, a figure for each variant that measured it."""
    drawn = tasks[:MOST_TASKS]
    look = looks(drawn, first=3)
    plots = []
    for variant in variants:
        lines = _by_task(variant, drawn, lambda stream: stream.sharpness)
        if lines:
            label = f"Sharpness of the tasks under {variant.name} by step; at the end: {_ends(lines)}."
            plots.append(Plot(escape(variant.name), label, lines_figure(lines, look)))
    if not plots:
        return None
    caption = f"How much each task's loss rises within the rule's radius; lower is flatter.{_thinned(variants)}"
    return Panel("Sharpness", caption, look, tuple(plots))


def _by_task(variant: Variant, tasks: Sequence[str], read: Callable[[Events], Mapping[str, Points]]) -> dict[str, Line]:
    """A line a task over the variant's seeds; a task without a value has none."""
    found = {task: line([read(stream).get(task, {}) for stream in variant.streams]) for task in tasks}
    return {task: row for task, row in found.items() if row is not None}


def _ends(lines: Mapping[str, Line]) -> str:
    return ", ".join(f"{task} {row.mean[-1]:.3g}" for task, row in lines.items())


def cosines_panel(variants: Sequence[Variant], tasks: Sequence[str]) -> Panel | None:
    """Cosines between the tasks' gradients: lines by step, and beyond a few pairs a matrix of means as well."""
    means = _mean_cosines(variants)
    if not means:
        return None
    overall: dict[tuple[str, str], list[float]] = {}
    for pairs in means.values():
        for pair, value in pairs.items():
            overall.setdefault(pair, []).append(value)
    lowest = sorted(overall, key=lambda pair: sum(overall[pair]) / len(overall[pair]))
    drawn = lowest[:MOST_PAIRS] if len(lowest) > MOST_PAIRS else sorted(overall, key=lambda pair: _order(pair, tasks))
    look = looks([_pair(pair) for pair in drawn], first=3)
    plots = []
    for variant in variants:
        if variant.name not in means:
            continue
        found = {_pair(pair): line([stream.cosines.get(pair, {}) for stream in variant.streams]) for pair in drawn}
        lines = {name: row for name, row in found.items() if row is not None}
        shown = ", ".join(
            f"{_pair(pair)} {means[variant.name][pair]:.2f}" for pair in drawn if pair in means[variant.name]
        )
        label = f"Cosines between the gradients of tasks under {variant.name} by step; means over training: {shown}."
        plots.append(Plot(escape(variant.name), label, lines_figure(lines, look, zero=True)))
    with_matrices = len(lowest) > MOST_PAIRS and len(tasks) <= MOST_TASKS_OF_A_MATRIX
    if with_matrices:
        plots += _matrices(means, tasks)
    caption = _cosine_words(means, len(drawn), len(lowest), with_matrices) + _thinned(variants) + _seeds(variants)
    return Panel("Do the gradients agree?", caption, look, tuple(plots))


def _cosine_words(
    means: Mapping[str, Mapping[tuple[str, str], float]], drawn: int, total: int, with_matrices: bool
) -> str:
    variant, pair, value = min(
        ((name, pair, value) for name, pairs in means.items() for pair, value in pairs.items()),
        key=lambda found: found[2],
    )
    text = "Cosines between the tasks' gradients; below zero, a step that helps one hurts the other. "
    text += f"Lowest on average: {escape(_pair(pair))}, {fixed(value, 2)} under {escape(variant)}."
    if drawn < total:
        text += f" The {drawn} lowest of {total:,} pairs are drawn"
        text += "; the matrices hold the means of all." if with_matrices else "."
    return text


def _matrices(means: Mapping[str, Mapping[tuple[str, str], float]], tasks: Sequence[str]) -> list[Plot]:
    """One a variant on one colour scale. The diagonal is left empty: a cosine of 1 with itself says nothing."""
    # To the next tenth above the largest, so that small cosines keep their colour.
    most = math.ceil(10 * max(abs(value) for pairs in means.values() for value in pairs.values()) + 1e-9) / 10
    plots = []
    for name, pairs in means.items():
        values = [[pairs.get((a, b), pairs.get((b, a))) for b in tasks] for a in tasks]
        lowest = min(pairs, key=lambda pair: pairs[pair])
        label = f"Mean cosines between all tasks under {name}; the lowest is {_pair(lowest)}, {pairs[lowest]:.2f}."
        heading = f"{escape(name)} <small>mean over training</small>"
        plots.append(Plot(heading, label, matrix_figure(tasks, values, min(most, 1.0))))
    return plots


def _mean_cosines(variants: Sequence[Variant]) -> dict[str, dict[tuple[str, str], float]]:
    means: dict[str, dict[tuple[str, str], float]] = {}
    for variant in variants:
        pairs = dict.fromkeys(pair for stream in variant.streams for pair in stream.cosines)
        for pair in pairs:
            value = overall_mean(stream.cosines.get(pair, {}) for stream in variant.streams)
            if value is not None:
                means.setdefault(variant.name, {})[pair] = value
    return means


def _by_variant(variants: Sequence[Variant], points: Callable[[Events], Points]) -> dict[str, Line]:
    found = {variant.name: line([points(stream) for stream in variant.streams]) for variant in variants}
    return {name: row for name, row in found.items() if row is not None}


def _most_changed(table: Comparison) -> list[str]:
    """All tasks in recipe order; of many, those that changed most under any variant."""
    names = [task.name for task in table.tasks]
    if len(names) <= MOST_TASKS:
        return names
    size = {
        name: max((abs(_mean(row.scores[name].relative) or 0) for row in table.variants), default=0) for name in names
    }
    largest = sorted(names, key=lambda name: -size[name])[:MOST_TASKS]
    return [name for name in names if name in largest]


def drawn_tasks(table: Comparison) -> list[DrawnTask]:
    about = {task.name: task for task in table.tasks}
    return [DrawnTask(n, about[n].metric, "↑" if about[n].higher_is_better else "↓") for n in _most_changed(table)]


def _mean(value: Estimate | None) -> float | None:
    return value.mean if value else None


def _with_interval(value: Estimate) -> tuple[float, float, float]:
    """(mean, low, high); without an interval all three are the mean."""
    mean = value.mean or 0.0
    return mean, mean if value.low is None else value.low, mean if value.high is None else value.high


def _pair(pair: tuple[str, str]) -> str:
    return f"{pair[0]} and {pair[1]}"


def _order(pair: tuple[str, str], tasks: Sequence[str]) -> tuple[int, int]:
    index = {task: i for i, task in enumerate(tasks)}
    return index.get(pair[0], len(index)), index.get(pair[1], len(index))


def _seeds(variants: Sequence[Variant]) -> str:
    most = max((len(variant.streams) for variant in variants), default=1)
    if most < 2:
        return ""
    text = f" Lines are means over {counted(most, 'seed')}, bands run from the lowest seed to the highest."
    ends = {tuple(sorted({stream.last_step for stream in variant.streams})) for variant in variants}
    early = any(len(steps) > 1 for steps in ends)
    return text + (" Where a seed stopped early, the mean is over those still running." if early else "")


def _thinned(variants: Sequence[Variant]) -> str:
    widest = max((stream.steps_a_point for variant in variants for stream in variant.streams), default=1)
    return f" A point is the mean over up to {widest} steps." if widest > 1 else ""


def most_changed_words(shown: int, total: int) -> str:
    return f" The {shown} of {total} tasks that changed most are drawn; the table has all." if shown < total else ""
