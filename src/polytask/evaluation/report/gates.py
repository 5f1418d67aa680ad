"""The panels about gates: which task uses which expert, how many activations are zero, and what is wrong."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from polytask.evaluation.formatting import listed
from polytask.evaluation.report.heat_maps import share_figure
from polytask.evaluation.report.panels import Panel, Plot

MOST_EXPERTS = 64
"""With more, the names of a heat map's columns would cover one another."""


def gates_panel(reports: Mapping[str, Sequence[Mapping[str, Any]]]) -> Panel | None:
    """Heat maps of the mean weights, a figure for each variant and place in its model.

    Args:
        reports: variant -> what each of its runs' results say about gates, one a seed; the first is drawn, and an
            anomaly is named with the number of runs that have it.
    """
    plots: list[Plot] = []
    sentences: list[str] = []
    for variant, runs in reports.items():
        found = [run for run in runs if run]
        if not found:
            continue
        for place, about in found[0].items():
            if len(about["experts"]) <= MOST_EXPERTS:
                plots += [_use(variant, place, about), *_zeros(variant, place, about)]
        sentences += _anomalies(variant, found)
    if not plots:
        return None
    caption = "How a task's gate weighs the experts, the mean over the validation rows of the best model"
    caption += ", first seed. " if any(len(runs) > 1 for runs in reports.values()) else ". "
    caption += " ".join(sentences) or "No expert has collapsed, was captured by one task, or is ignored by its own."
    return Panel("What the gates do", caption, {}, tuple(plots))


def _use(variant: str, place: str, about: Mapping[str, Any]) -> Plot:
    tasks, experts = list(about["use"]), about["experts"]
    entropy = ", ".join(f"{task} {value:.0%}" for task, value in about["entropy"].items())
    favourite = [
        f"{task} {experts[max(range(len(experts)), key=lambda e, row=row: row[e] or 0.0)]}"
        for task, row in about["use"].items()
    ]
    label = (
        f"Mean weights of the experts at {place} under {variant}. The most used: {listed(favourite)}. "
        f"Evenness of a row's weights (100 % is even): {entropy}."
    )
    heading = f"{escape(variant)} <small>{escape(place)}; evenness {escape(entropy)}</small>"
    return Plot(heading, label, share_figure(tasks, experts, list(about["use"].values())))


def _zeros(variant: str, place: str, about: Mapping[str, Any]) -> list[Plot]:
    """The share of zero activations; nothing where the activation has no zeros."""
    zeros = about["zeros"]
    if not any(zeros.values()):
        return []
    label = f"Share of zero activations at {place} under {variant}: " + ", ".join(
        f"{expert} {share:.0%}" for expert, share in zeros.items()
    )
    heading = f"{escape(variant)} <small>{escape(place)}; zero activations</small>"
    return [Plot(heading, f"{label}.", share_figure(["zeros"], list(zeros), [list(zeros.values())]))]


def _anomalies(variant: str, runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """A sentence an anomaly; of several runs the first run's wording, with how many have one of its kind."""
    kinds: dict[tuple[str, str], list[str]] = {}
    for run in runs:
        for place, about in run.items():
            for sentence in about["anomalies"]:
                kinds.setdefault((place, sentence.partition(":")[0]), []).append(sentence)
    return [
        f"<strong>{escape(variant)}, {escape(place)}: {escape(found[0])}</strong>"
        + (f" ({len(found)} such in {len(runs)} runs)." if len(found) > 1 else ".")
        for (place, _), found in kinds.items()
    ]
