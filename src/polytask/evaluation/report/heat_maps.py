"""Heat maps as plain plotly specifications; colours as in `figures`."""

from collections.abc import Sequence
from typing import Any

from polytask.evaluation.report.figures import Spec, plain_layout, rounded

Values = Sequence[Sequence[float | None]]


def matrix_figure(tasks: Sequence[str], values: Values, most: float) -> Spec:
    """Cosines between tasks, coloured from -most to most."""
    diverging = [[0, "$conflict"], [0.5, "$ground"], [1, "$agree"]]
    look = {"zmin": -most, "zmax": most, "colorscale": diverging, "hovertemplate": "%{y} and %{x}: %{z:.2f}"}
    return _heat_map(tasks, tasks, values, look, {"tickvals": [-most, 0, most]})


def share_figure(rows: Sequence[str], columns: Sequence[str], values: Values) -> Spec:
    """Shares of a whole, coloured from 0 to the largest; an empty place is one that cannot be."""
    most = max((value for row in values for value in row if value is not None), default=1.0) or 1.0
    rising = [[0, "$ground"], [1, "$agree"]]
    look = {"zmin": 0, "zmax": most, "colorscale": rising, "hovertemplate": "%{y}, %{x}: %{z:.1%}"}
    return _heat_map(rows, columns, values, look, {"tickformat": ".0%"})


def _heat_map(rows: Sequence[str], columns: Sequence[str], values: Values, look: Spec, ticks: dict[str, Any]) -> Spec:
    layout = plain_layout()
    layout["height"] = 110 + 24 * len(rows)
    layout["xaxis"] |= {"showgrid": False, "tickangle": -45, "type": "category", "dtick": 1}
    layout["yaxis"] |= {"showgrid": False, "autorange": "reversed", "type": "category", "dtick": 1}
    trace = {
        "type": "heatmap",
        "x": list(columns),
        "y": list(rows),
        "z": [[None if value is None else rounded(value) for value in row] for row in values],
        "xgap": 1,
        "ygap": 1,
        **look,
        "hovertemplate": f"{look['hovertemplate']}<extra></extra>",
        "colorbar": {"thickness": 8, "outlinewidth": 0, "tickfont": {"color": "$muted", "size": 11}, **ticks},
    }
    return {"data": [trace], "layout": layout}
