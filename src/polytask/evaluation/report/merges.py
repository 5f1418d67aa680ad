"""A merged model in the report: how much the tasks interfere, over the whole model and layer by layer."""

from collections.abc import Mapping, Sequence
from html import escape
from math import ceil
from typing import Any

from polytask.evaluation.formatting import counted, fixed, magnitude
from polytask.evaluation.report.figures import Spec, layers_figure, looks
from polytask.evaluation.report.heat_maps import matrix_figure
from polytask.evaluation.report.merging import Merge
from polytask.evaluation.report.panels import MOST_PAIRS, MOST_TASKS, MOST_TASKS_OF_A_MATRIX, Panel, Plot


def headline(merge: Merge) -> str:
    """What was merged, and which two disagree most; HTML."""
    tasks, rule = merge.tasks, merge.card.get("rule", "a rule")
    start = f"{counted(len(tasks), 'model').capitalize()} merged by <strong>{escape(str(rule))}</strong>"
    pair = _extreme(merge.measured["whole"]["cosines"], tasks, lowest=True)
    if pair is None:
        return f"{start}."
    first, second, value = pair
    return f"{start}; {escape(first)} and {escape(second)} are least alike, cosine {fixed(value, 2)}."


def lede(merge: Merge) -> str:
    whole = merge.measured["whole"]
    sentences = [f"{magnitude(merge.card.get('parameters', whole['elements']))} parameters."]
    worst = _extreme(whole["conflicts"], merge.tasks, lowest=False)
    if worst is not None:
        first, second, share = worst
        sentences.append(
            f"{escape(first)} and {escape(second)} change {fixed(100 * share, 0)}&nbsp;% of the elements that both "
            "change in opposite directions; of two unrelated changes that is 50&nbsp;%."
        )
    layer = _worst_layer(merge)
    if layer is not None:
        sentences.append(f"The layer that disagrees most is {escape(layer[0])}, mean cosine {fixed(layer[1], 2)}.")
    return " ".join(sentences)


def panels(merge: Merge) -> list[Panel]:
    """The figures."""
    tasks, whole, layers = merge.tasks, merge.measured["whole"], merge.measured["layers"]
    found = []
    if 1 < len(tasks) <= MOST_TASKS_OF_A_MATRIX:
        plots = (
            _matrix("Cosines", whole["cosines"], tasks, "Cosines between the tasks' changes to the base"),
            _matrix("Signs", _agreement(whole["conflicts"]), tasks, "Equal signs minus opposite signs, as shares"),
        )
        kept = whole.get("kept") or []
        if kept:
            plots += (
                _matrix("Masks", _overlaps(kept), tasks, "Elements that both tasks keep, of those that either keeps"),
            )
        caption = (
            "Between the tasks' vectors, fine-tuned minus base. Signs: the share of elements that two tasks change in "
            "the same direction less the share in opposite ones; 0 is what two unrelated changes have."
            + (
                f" Masks: the elements that both keep of those that either keeps; {_densities(kept, tasks)}."
                if kept
                else ""
            )
        )
        found.append(Panel("Do the tasks agree?", caption, {}, plots))
    if len(layers) > 1:
        found += [panel for panel in (_cosines_by_layer(merge), _lengths_by_layer(merge)) if panel is not None]
    return found


def _overlaps(kept: Sequence[Sequence[float]]) -> list[list[float | None]]:
    """Of two masks, what is in both over what is in either."""

    def share(i: int, j: int) -> float | None:
        either = kept[i][i] + kept[j][j] - kept[i][j]
        return kept[i][j] / either if either > 0 else None

    return [[share(i, j) for j in range(len(kept))] for i in range(len(kept))]


def _densities(kept: Sequence[Sequence[float]], tasks: Sequence[str]) -> str:
    return ", ".join(
        f"{escape(task)} keeps {fixed(100 * kept[i][i], 0)}&nbsp;%" for i, task in enumerate(tasks[:MOST_TASKS])
    )


def _agreement(conflicts: Sequence[Sequence[float | None]]) -> list[list[float | None]]:
    return [[None if share is None else 1 - 2 * share for share in row] for row in conflicts]


def _matrix(heading: str, values: Sequence[Sequence[float | None]], tasks: Sequence[str], about: str) -> Plot:
    """The diagonal is left empty: it says nothing."""
    shown = [[None if i == j else value for j, value in enumerate(row)] for i, row in enumerate(values)]
    known = [(value, i, j) for i, row in enumerate(shown) for j, value in enumerate(row) if value is not None]
    most = min(1.0, ceil(10 * max((abs(value) for value, _, _ in known), default=1.0) + 1e-9) / 10)
    pairs = ", ".join(f"{tasks[i]} and {tasks[j]} {value:.2f}" for value, i, j in known if i < j)
    return Plot(heading, f"{about}: {pairs}.", matrix_figure(tasks, shown, most))


def _cosines_by_layer(merge: Merge) -> Panel | None:
    tasks, layers = merge.tasks, merge.measured["layers"]
    pairs = [(i, j) for i in range(len(tasks)) for j in range(i + 1, len(tasks))]
    lines = {
        f"{tasks[i]} and {tasks[j]}": [layer["cosines"][i][j] for layer in layers]
        for i, j in _lowest(merge.measured["whole"]["cosines"], pairs)[:MOST_PAIRS]
    }
    known = {name: values for name, values in lines.items() if any(value is not None for value in values)}
    if not known:
        return None
    look = looks(list(known))
    names = [layer["layer"] for layer in layers]
    drawn = f" The {len(known)} lowest of {len(pairs):,} pairs are drawn." if len(known) < len(pairs) else ""
    label = f"Cosines between tasks by layer, from {names[0]} to {names[-1]}, for {', '.join(known)}."
    plot = Plot("Cosines by layer", label, _spec(names, known, look, zero=True))
    return Panel(
        "Which layers disagree?", f"Cosines in each layer, in the order of the model.{drawn}", look, (plot,), True
    )


def _lengths_by_layer(merge: Merge) -> Panel | None:
    tasks, layers = merge.tasks, merge.measured["layers"]
    lengths = {task: [_relative(layer, layer["norms"][i]) for layer in layers] for i, task in enumerate(tasks)}
    shown = {task: lengths[task] for task in tasks[:MOST_TASKS]}
    merged = {**shown, "merged": [_relative(layer, layer["merged_norm"]) for layer in layers]}
    if not any(value is not None for values in shown.values() for value in values):
        return None
    look = looks(list(merged), "merged")
    names = [layer["layer"] for layer in layers]
    largest = max(shown, key=lambda task: max(value or 0.0 for value in shown[task]))
    label = f"Length of each task's change by layer, relative to the base's; the largest is of {largest}."
    plot = Plot("Lengths by layer", label, _spec(names, merged, look))
    caption = (
        "The length of each task's change in a layer over that of the base's weights there, and of what was merged."
    )
    return Panel("Where do the tasks change the model?", caption, look, (plot,), True)


def _spec(names: Sequence[str], lines: Mapping[str, Sequence[float | None]], look: Any, zero: bool = False) -> Spec:
    return layers_figure(names, lines, look, zero=zero)


def _relative(layer: Mapping[str, Any], length: float) -> float | None:
    return length / layer["base_norm"] if layer.get("base_norm") else None


def _worst_layer(merge: Merge) -> tuple[str, float] | None:
    """The layer with the lowest mean cosine over pairs."""
    tasks = len(merge.tasks)
    means: dict[str, float] = {}
    for layer in merge.measured["layers"]:
        found = [layer["cosines"][i][j] for i in range(tasks) for j in range(i + 1, tasks)]
        known = [value for value in found if value is not None]
        if known:
            means[layer["layer"]] = sum(known) / len(known)
    return min(means.items(), key=lambda item: item[1]) if len(means) > 1 else None


def _lowest(values: Sequence[Sequence[float | None]], pairs: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    known = [(i, j) for i, j in pairs if values[i][j] is not None]
    return sorted(known, key=lambda pair: values[pair[0]][pair[1]] or 0.0)


def _extreme(
    values: Sequence[Sequence[float | None]], tasks: Sequence[str], *, lowest: bool
) -> tuple[str, str, float] | None:
    """The pair with the lowest (else the highest) value."""
    pairs = [
        (value, first, second)
        for i, first in enumerate(tasks)
        for j, second in enumerate(tasks)
        if i < j and (value := values[i][j]) is not None
    ]
    if not pairs:
        return None
    value, first, second = (min if lowest else max)(pairs, key=lambda pair: pair[0])
    return first, second, value
