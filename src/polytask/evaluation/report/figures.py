"""The figures as plain plotly specifications.

A colour is the name of a CSS variable after a `$` (`$ink`, `$series-1/0.15` with opacity): draw.js puts in what the
style sheet says, so that light, dark and print each have their colours in one place.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from polytask.evaluation.report.lines import Line

PALETTE = 8
DASHES = ("solid", "dash", "dot", "dashdot")
SYMBOLS = ("circle", "diamond", "square", "triangle-up", "cross", "star", "hexagon", "triangle-down")
Spec = dict[str, Any]


@dataclass(frozen=True)
class Look:
    """How one series looks in every figure: told apart by colour, dash and symbol."""

    colour: str
    dash: str
    symbol: str


def looks(names: Sequence[str], baseline: str | None = None, first: int = 0) -> dict[str, Look]:
    """The baseline is grey and dotted; the others take colours in order from `first`, after the last the next dash."""
    result: dict[str, Look] = {}
    index = first
    for name in names:
        if name == baseline:
            result[name] = Look("$series-0", "dot", "x")
            continue
        dash = DASHES[index // PALETTE % len(DASHES)]
        result[name] = Look(f"$series-{index % PALETTE + 1}", dash, SYMBOLS[index % len(SYMBOLS)])
        index += 1
    return result


def lines_figure(
    lines: Mapping[str, Line], look: Mapping[str, Look], *, zero: bool = False, late: bool = False
) -> Spec:
    """Lines by step, each with the band that its seeds span.

    Args:
        zero: draws a line at zero.
        late: the value axis covers what comes after the first fifth of the steps (see `late_range`).
    """
    traces: list[Spec] = []
    for name, line in lines.items():
        if line.seeds > 1:
            traces.append(_band(line, look[name]))
    for name, line in lines.items():
        traces.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": name,
                "x": list(line.steps),
                "y": [rounded(value) for value in line.mean],
                "line": {"color": look[name].colour, "width": 2, "dash": look[name].dash},
                "marker": {"color": look[name].colour, "size": 6, "symbol": look[name].symbol, "maxdisplayed": 9},
                "hovertemplate": "%{y:.4~g}",
            }
        )
    layout = plain_layout()
    layout["xaxis"] |= {"title": _title("step"), "rangemode": "tozero"}
    layout["hovermode"] = "x unified"
    shown = late_range(lines) if late else None
    if shown:
        layout["yaxis"]["range"] = [rounded(value) for value in shown]
    if zero:
        layout["yaxis"] |= {"zeroline": True, "zerolinecolor": "$muted", "zerolinewidth": 1}
    return {"data": traces, "layout": layout}


def late_range(lines: Mapping[str, Line]) -> tuple[float, float] | None:
    """The values after the first fifth of the steps, with a margin; None where this would hide little of the axis.

    Learning curves are steep at first, and what tells variants apart comes later, in a small part of the whole range.
    """
    last = max(line.steps[-1] for line in lines.values())
    points = [point for line in lines.values() for point in zip(line.steps, line.low, line.high, strict=True)]
    late = [(low, high) for step, low, high in points if step >= last / 5]
    low, high = min(low for low, _ in late), max(high for _, high in late)
    whole = max(high for _, _, high in points) - min(low for _, low, _ in points)
    margin = 0.06 * (high - low)
    return (low - margin, high + margin) if 0 < high - low < 0.7 * whole else None


def differences_figure(
    rows: Sequence[str], points: Mapping[str, Sequence[tuple[float, float, float] | None]], look: Mapping[str, Look]
) -> Spec:
    """Points with intervals against a zero line, one row a task; `points`: (mean, low, high) for each row, or None."""
    traces: list[Spec] = []
    count = len(points)
    for index, (name, values) in enumerate(points.items()):
        # Series share a row, one beneath another, the first on top.
        offset = (index - (count - 1) / 2) * 0.62 / max(count, 1)
        places = [(row + offset, value) for row, value in enumerate(values) if value is not None]
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": name,
                "x": [rounded(value[0]) for _, value in places],
                "y": [place for place, _ in places],
                "error_x": {
                    "type": "data",
                    "symmetric": False,
                    "array": [rounded(value[2] - value[0]) for _, value in places],
                    "arrayminus": [rounded(value[0] - value[1]) for _, value in places],
                    "color": look[name].colour,
                    "thickness": 1.6,
                    "width": 0,
                },
                "marker": {"color": look[name].colour, "size": 8, "symbol": look[name].symbol},
                "hovertemplate": "%{x:+.2f} %",
            }
        )
    layout = plain_layout()
    layout["height"] = 70 + max(len(rows) * max(30, 14 * count + 14), 90)
    layout["xaxis"] |= {"title": _title("change against the baseline, %"), "zeroline": True, "zerolinecolor": "$ink"}
    layout["yaxis"] |= {
        "tickvals": list(range(len(rows))),
        "ticktext": list(rows),
        "range": [len(rows) - 0.5, -0.5],
        "showgrid": False,
    }
    layout["shapes"] = [
        {
            "type": "line",
            "xref": "paper",
            "x0": 0,
            "x1": 1,
            "y0": i + 0.5,
            "y1": i + 0.5,
            "line": {"color": "$line", "width": 1},
        }
        for i in range(len(rows) - 1)
    ]
    return {"data": traces, "layout": layout}


@dataclass(frozen=True)
class CostPoint:
    """One variant in the figure of cost: seconds a seed, delta-m in percent, the interval or None, parameters."""

    name: str
    seconds: float
    delta: float
    half_width: float | None
    parameters: float | None


def name_places(points: Sequence[CostPoint], baseline: str | None) -> dict[str, str]:
    """Where each name stands: right of its mark, or left near the right edge, which would cut it; of two marks that
    nearly touch the higher one's name goes up and the lower one's down."""
    most = max((point.seconds for point in points), default=1.0) or 1.0
    extremes = [point.delta + sign * (point.half_width or 0) for point in points for sign in (-1, 1)]
    height = max(extremes, default=0) - min(extremes, default=0) or 1.0
    places = {}
    for point in points:
        near = [
            other
            for other in points
            if other is not point
            and abs(other.seconds - point.seconds) < 0.15 * most
            and abs(other.delta - point.delta) < 0.08 * height
        ]
        row = "middle"
        if point.name == baseline or (near and all(point.delta > other.delta for other in near)):
            row = "top"
        elif near and all(point.delta < other.delta for other in near):
            row = "bottom"
        places[point.name] = f"{row} {'left' if point.seconds > 0.7 * most else 'right'}"
    return places


def cost_figure(points: Sequence[CostPoint], look: Mapping[str, Look], baseline: str | None) -> Spec:
    """delta-m over seconds; a mark's area grows with the parameters. The baseline's name stands above the zero line."""
    largest = max((point.parameters or 0 for point in points), default=0)
    most = max((point.seconds for point in points), default=1.0)
    places = name_places(points, baseline)
    traces = [
        {
            "type": "scatter",
            "mode": "markers+text",
            "name": point.name,
            "x": [rounded(point.seconds)],
            "y": [rounded(point.delta)],
            "text": [f"  {point.name}  "],
            "textposition": places[point.name],
            "textfont": {"color": "$ink"},
            "cliponaxis": False,
            "error_y": {
                "type": "data",
                "array": [rounded(point.half_width or 0)],
                "color": look[point.name].colour,
                "thickness": 1.6,
                "width": 0,
                "visible": point.half_width is not None,
            },
            "marker": {
                "color": look[point.name].colour,
                "symbol": look[point.name].symbol,
                "size": round(9 + 15 * ((point.parameters or 0) / largest) ** 0.5, 1) if largest else 12,
                "opacity": 0.9,
            },
            "hovertemplate": "%{x:.3~g} s, %{y:+.2f} %",
        }
        for point in points
    ]
    layout = plain_layout()
    layout["height"] = 300
    layout["xaxis"] |= {"title": _title("seconds of training, one seed"), "range": [0, most * 1.25]}
    layout["yaxis"] |= {"title": _title("delta-m, %"), "zeroline": True, "zerolinecolor": "$ink"}
    return {"data": traces, "layout": layout}


def layers_figure(
    names: Sequence[str], lines: Mapping[str, Sequence[float | None]], look: Mapping[str, Look], *, zero: bool = False
) -> Spec:
    """A line a series over the layers of a model, in their order; a layer without a value leaves a gap."""
    traces = [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": name,
            "x": list(names),
            "y": [None if value is None else rounded(value) for value in values],
            "line": {"color": look[name].colour, "width": 2, "dash": look[name].dash},
            "marker": {"color": look[name].colour, "size": 6, "symbol": look[name].symbol},
            "hovertemplate": "%{y:.3~g}",
        }
        for name, values in lines.items()
    ]
    layout = plain_layout()
    layout["height"] = 320
    layout["xaxis"] |= {"type": "category", "tickangle": -45}
    layout["hovermode"] = "x unified"
    if zero:
        layout["yaxis"] |= {"zeroline": True, "zerolinecolor": "$muted", "zerolinewidth": 1}
    return {"data": traces, "layout": layout}


def _band(line: Line, look: Look) -> Spec:
    """A closed outline: up along the highest seed, back along the lowest."""
    return {
        "type": "scatter",
        "mode": "lines",
        "x": [*line.steps, *reversed(line.steps)],
        "y": [*map(rounded, line.high), *map(rounded, reversed(line.low))],
        "fill": "toself",
        "fillcolor": f"{look.colour}/0.12",
        "line": {"width": 0},
        "hoverinfo": "skip",
    }


def plain_layout() -> Spec:
    """What all figures have in common."""
    axis = {
        "gridcolor": "$line",
        "linecolor": "$line",
        "zeroline": False,
        "automargin": True,
        "nticks": 6,
        "tickfont": {"color": "$muted", "size": 11},
        "fixedrange": True,
    }
    return {
        "height": 220,
        "margin": {"l": 44, "r": 12, "t": 8, "b": 40},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "$font", "color": "$ink", "size": 12},
        "showlegend": False,
        "hoverlabel": {"bgcolor": "$raised", "bordercolor": "$line", "font": {"color": "$ink", "family": "$font"}},
        "xaxis": {**axis, "showgrid": False},
        "yaxis": {**axis},
    }


def rounded(value: float) -> float:
    """Five digits are more than a screen shows, and keep the page small."""
    return float(f"{value:.5g}")


def _title(text: str) -> Spec:
    return {"text": text, "font": {"color": "$muted", "size": 11}, "standoff": 8}
