"""docs/images/toy.png: the paths of the toy on the contours of the summed losses, a panel a rule.

plotly draws the page and the system's Chromium photographs it, as the browser tests do; Pillow makes the file small.
"""

import io
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from benchmarks import toy
from polytask.core.errors import MissingInput

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

COLUMNS, PANEL = 6, 190  # panels a line, and their side in pixels
SPAN, GRID = (-11.0, 11.0), 111
COLOURS = ("#1b6ca8", "#d95f02", "#1b9e77", "#7b3294", "#a6761d")  # one a start
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = ["--headless", "--no-sandbox", "--disable-gpu"]


def figure(measured: Mapping[str, Any]) -> "Figure":
    """A panel a rule, in the order of the results: contours, the front in black, five paths with their ends."""
    from plotly.graph_objects import Contour, Figure, Scatter
    from plotly.subplots import make_subplots

    rules = measured["rules"]
    lines = math.ceil(len(rules) / COLUMNS)
    titles = [f"{name}: {about['reached']} of {len(measured['starts'])}" for name, about in rules.items()]
    drawn: Figure = make_subplots(
        rows=lines, cols=COLUMNS, subplot_titles=titles, horizontal_spacing=0.008, vertical_spacing=0.24 / lines
    )
    axis, heights = _landscape()
    front = toy.front()
    for place, about in enumerate(rules.values()):
        where = {"row": place // COLUMNS + 1, "col": place % COLUMNS + 1}
        thin = {"width": 0.6, "color": "#9aa7b4"}
        contours = Contour(x=axis, y=axis, z=heights, ncontours=18, contours={"coloring": "none"}, line=thin)
        drawn.add_trace(contours, **where)
        thick = {"width": 3, "color": "black"}
        drawn.add_trace(Scatter(x=front[:, 0], y=front[:, 1], mode="lines", line=thick), **where)
        for path, colour in zip(about["paths"], COLOURS, strict=True):
            points = np.array([[float(number) for number in point.split(",")] for point in path.split()])
            drawn.add_trace(
                Scatter(x=points[:, 0], y=points[:, 1], mode="lines", line={"color": colour, "width": 1.8}), **where
            )
            ends = Scatter(
                x=points[[0, -1], 0],
                y=points[[0, -1], 1],
                mode="markers",
                marker={"color": colour, "size": [5, 8], "symbol": ["circle-open", "circle"]},
            )
            drawn.add_trace(ends, **where)
    drawn.update_xaxes(range=SPAN, visible=False)
    drawn.update_yaxes(range=SPAN, visible=False)
    drawn.update_annotations(font_size=12)
    drawn.update_layout(
        width=COLUMNS * PANEL,
        height=lines * (PANEL + 22) + 20,
        showlegend=False,
        plot_bgcolor="white",
        margin={"l": 5, "r": 5, "t": 25, "b": 5},
    )
    return drawn


def write(measured: Mapping[str, Any], path: Path) -> Path:
    """Draws the results of `toy.measure`."""
    from PIL import Image
    from playwright.sync_api import sync_playwright

    chromium = next((found for name in CHROMIUM if (found := shutil.which(name))), None)
    if chromium is None:
        raise MissingInput("the picture of the toy needs Chromium: make system-packages")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium, args=["--headless", "--no-sandbox", "--disable-gpu"]
        )
        drawn = figure(measured)
        page = browser.new_page(viewport={"width": int(drawn.layout.width), "height": int(drawn.layout.height)})
        page.set_content(drawn.to_html(include_plotlyjs=True, config={"staticPlot": True}))
        page.wait_for_selector(".main-svg .contourlayer")
        photograph = page.locator(".plotly-graph-div").screenshot()
        browser.close()
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.open(io.BytesIO(photograph)).convert("RGB").quantize(64).save(path, optimize=True)
    return path


def _landscape() -> tuple[np.ndarray, np.ndarray]:
    """The sum of both losses on a grid; the walls, whose logarithms go far down, are cut."""
    axis = np.linspace(*SPAN, GRID)
    grid = torch.from_numpy(np.stack(np.meshgrid(axis, axis), axis=-1))
    return axis, toy.losses(grid, scale=1.0).sum(-1).clamp(min=-30).numpy()
