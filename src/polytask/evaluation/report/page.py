"""The page: sections for comparisons and runs, in one file that opens without a network."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from polytask.core.errors import MissingInput
from polytask.evaluation.report import merges, panels, tables, words
from polytask.evaluation.report.figures import Look, Spec, looks
from polytask.evaluation.report.gates import gates_panel
from polytask.evaluation.report.merging import Merge
from polytask.evaluation.report.panels import DrawnTask, Panel
from polytask.evaluation.report.reading import Run, Study, Variant, read
from polytask.evaluation.table import FORMULA

# The page asks nobody for anything: whatever is not in the file is refused by the browser itself.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data: blob:"
JUDGED = (
    "▲ better, ▼ worse: the 95 % Student t interval of the differences to the baseline, paired by seed, excludes zero; "
    "≈ within noise: it does not. ± is half the 95 % interval of the mean."
)


@dataclass
class Page:
    """The page while it is put together: HTML blocks, and the figures that the script draws."""

    blocks: list[str] = field(default_factory=list)
    specs: dict[str, Spec] = field(default_factory=dict)

    def add(self, html: str) -> None:
        self.blocks.append(html)

    def figure(self, spec: Spec) -> str:
        name = f"figure-{len(self.specs)}"
        self.specs[name] = spec
        return name


def write_report(directories: Sequence[Path], out: Path) -> Path:
    """Writes one self-contained HTML file from run, compare and merge directories, in any mixture.

    Comparisons come first, each with its section; the runs share one. The same directories give the same bytes.

    Args:
        directories: run directories (RUN), compare directories, merged models.
        out: the file; or a directory, which then gets report.html.

    Returns:
        The file that was written.

    Raises:
        MissingInput: no directory was given.
        CheckpointError: a directory is neither a run, a compare nor a merge, or is damaged.
    """
    if not directories:
        raise MissingInput("a report needs at least one run, compare or merge directory")
    found = [read(Path(directory)) for directory in directories]
    out = out / "report.html" if out.is_dir() else out
    html = render(found)
    partial = out.with_name(f".{out.name}.partial")
    partial.write_text(html, encoding="utf-8")
    os.replace(partial, out)
    return out


def render(found: Sequence[Run | Study | Merge]) -> str:
    """The page's HTML."""
    studies = [item for item in found if isinstance(item, Study)]
    merged = [item for item in found if isinstance(item, Merge)]
    runs = [item for item in found if isinstance(item, Run)]
    page = Page()
    several = len(studies) + len(merged) + bool(runs) > 1
    if several:
        _contents(page, studies, merged, runs)
    for number, study in enumerate(studies, start=1):
        _study_section(page, study, f"comparison-{number}", several)
    for number, merge in enumerate(merged, start=1):
        _merge_section(page, merge, f"merge-{number}", several)
    if runs:
        _runs_section(page, runs, several)
    title = _title([*studies, *merged, *runs])
    return _document(page, title)


def _title(found: Sequence[Run | Study | Merge]) -> str:
    names = [item.path.resolve().name for item in found]
    return f"{', '.join(names[:3])}{' ...' if len(names) > 3 else ''} · polytask"


def _contents(page: Page, studies: Sequence[Study], merged: Sequence[Merge], runs: Sequence[Run]) -> None:
    items = [
        f'<li><a href="#comparison-{number}">{escape(study.path.resolve().name)}</a>: '
        f"{words.comparison_headline(study.table)}</li>"
        for number, study in enumerate(studies, start=1)
    ]
    items += [
        f'<li><a href="#merge-{number}">{escape(merge.path.resolve().name)}</a>: {merges.headline(merge)}</li>'
        for number, merge in enumerate(merged, start=1)
    ]
    if runs:
        items.append(f'<li><a href="#runs">Runs</a>: {words.runs_headline(runs)}</li>')
    page.add(f'<h1>{len(items)} results in one page</h1><nav aria-label="Contents"><ol>{"".join(items)}</ol></nav>')


def _study_section(page: Page, study: Study, name: str, several: bool) -> None:
    table = study.table
    _open_section(page, name, words.comparison_headline(table), words.comparison_lede(table, study.results), several)
    judged = [f"<li>{escape(JUDGED)}</li>", f"<li>{_typeset(FORMULA)}</li>"] if table.baseline else []
    notes = [f'<li class="warning">{escape(note)}</li>' for note in table.notes]
    caption = "Test metrics, differences to the single-task baseline, and costs of every variant"
    page.add(
        f'<div class="block"><h2>Comparison</h2><p class="about">Test metrics, means over seeds.</p>'
        f'{tables.comparison_table(table, caption)}<ul class="footnotes">{"".join(notes + judged)}</ul></div>'
    )
    _add_sources(page, tables.sources_table(study.by_source, study.results["tasks"]))
    pair = [panel for panel in (panels.differences_panel(table), panels.cost_panel(table)) if panel]
    page.add(f'<div class="pair">{"".join(_panel(page, panel) for panel in pair)}</div>')
    look = looks([row.name for row in table.rows], table.baseline)
    names = [task.name for task in table.tasks]
    drawn_tasks = panels.drawn_tasks(table)
    drawn = [
        panels.curves_panel(study.variants, drawn_tasks, look, panels.most_changed_words(len(drawn_tasks), len(names))),
        panels.cosines_panel(study.variants, names),
        panels.weights_panel(study.variants, names),
        panels.sharpness_panel(study.variants, names),
        gates_panel(study.gates),
    ]
    _add_panels(page, drawn)
    facts = {**_facts(study.results), "Budget": _budget(study.results.get("budget") or {})}
    page.add(_sources(study.recipe, facts))
    page.add("</section>")


def _merge_section(page: Page, merge: Merge, name: str, several: bool) -> None:
    _open_section(page, name, merges.headline(merge), merges.lede(merge), several)
    _add_panels(page, merges.panels(merge))
    inputs = {f"Input {key}": str(facts.get("model")) for key, facts in merge.card.get("parents", {}).items()}
    page.add(_sources(merge.recipe, {**inputs, **_facts({"provenance": merge.card.get("versions")})}, "Plan"))
    page.add("</section>")


def _runs_section(page: Page, runs: Sequence[Run], several: bool) -> None:
    _open_section(page, "runs", words.runs_headline(runs), words.runs_lede(runs), several)
    if any(run.results for run in runs):
        caption = "Metrics and costs of every run"
        about = "Test metrics at the best step, validation metrics beneath."
        page.add(
            f'<div class="block"><h2>Metrics</h2><p class="about">{about}</p>{tables.runs_table(runs, caption)}</div>'
        )
    by_source = {words.run_name(run, runs): [run.results.get("test_by_source", {})] for run in runs}
    described = {task: about for run in runs for task, about in run.results.get("tasks", {}).items()}
    _add_sources(page, tables.sources_table(by_source, described))
    variants = [Variant(words.run_name(run, runs), False, (run.events,)) for run in runs]
    look: Mapping[str, Look] = looks([variant.name for variant in variants])
    tasks = _tasks_of(runs)
    names = [task.name for task in tasks]
    first = f" The first {panels.MOST_TASKS} of {len(tasks):,} tasks." if len(tasks) > panels.MOST_TASKS else ""
    drawn = [
        panels.curves_panel(variants, tasks[: panels.MOST_TASKS], look, first),
        panels.losses_panel(variants, tasks[: panels.MOST_TASKS], look),
        panels.cosines_panel(variants, names),
        panels.weights_panel(variants, names),
        panels.sharpness_panel(variants, names),
        gates_panel({words.run_name(run, runs): [run.results.get("gates", {})] for run in runs}),
    ]
    _add_panels(page, drawn)
    for run in runs:
        facts = {"Run": words.run_name(run, runs)} if len(runs) > 1 else {}
        page.add(_sources(run.recipe, {**facts, **_facts(run.results)}))
    page.add("</section>")


def _tasks_of(runs: Sequence[Run]) -> list[DrawnTask]:
    """The union in order; of a run that has not ended only the event stream says what it measures."""
    tasks: dict[str, DrawnTask] = {}
    for run in runs:
        for task in run.tasks:
            tasks.setdefault(task.name, DrawnTask(task.name, task.metric, "↑" if task.higher_is_better else "↓"))
        for name, metrics in run.events.metrics.items():
            tasks.setdefault(name, DrawnTask(name, next(iter(metrics)), ""))
    return list(tasks.values())


def _open_section(page: Page, name: str, headline: str, lede: str, several: bool) -> None:
    tag = 'h2 class="headline"' if several else "h1"
    page.add(f'<section class="result" id="{name}"><{tag}>{headline}</{tag.split()[0]}><p class="lede">{lede}</p>')


def _add_sources(page: Page, table: str) -> None:
    if table:
        about = (
            "Test metrics of tasks with labels in several sources, each source by itself; held out: never trained on."
        )
        page.add(f'<div class="block"><h2>Sources</h2><p class="about">{about}</p>{table}</div>')


def _add_panels(page: Page, drawn: Sequence[Panel | None]) -> None:
    for panel in drawn:
        if panel is not None:
            page.add(_panel(page, panel))


def _panel(page: Page, panel: Panel) -> str:
    plots = []
    for plot in panel.plots:
        hidden = ' class="hidden"' if panel.wide else ""
        plots.append(
            f'<div><h3{hidden}>{plot.heading}</h3><div class="plot" role="img" aria-label="{escape(plot.label)}" '
            f'data-figure="{page.figure(plot.spec)}" style="min-height:{plot.spec["layout"]["height"]}px"></div></div>'
        )
    legend = "".join(f"<li>{_swatch(look)}{escape(name)}</li>" for name, look in panel.look.items())
    shown = f'<ul class="legend" aria-label="Legend">{legend}</ul>' if len(panel.look) > 1 else ""
    wide = " wide" if panel.wide else ""
    return (
        f'<div class="block"><h2>{escape(panel.title)}</h2><p class="about">{panel.caption}</p>{shown}'
        f'<div class="plots{wide}">{"".join(plots)}</div></div>'
    )


_SWATCH_DASHES = {"solid": "", "dash": "7 3", "dot": "2 3", "dashdot": "7 3 2 3"}


def _swatch(look: Look) -> str:
    colour = f"var(--{look.colour[1:]})"
    dashes = f' stroke-dasharray="{_SWATCH_DASHES[look.dash]}"' if _SWATCH_DASHES[look.dash] else ""
    return (
        f'<svg width="26" height="12" aria-hidden="true"><path d="M0 6H26" fill="none" stroke-width="2" '
        f'style="stroke:{colour}"{dashes}/>{_SWATCH_SYMBOLS[look.symbol].format(colour)}</svg>'
    )


def _filled(path: str) -> str:
    return f'<path d="{path}" style="fill:{{}}"/>'


_SWATCH_SYMBOLS = {
    "circle": _filled("M9.5 6a3.5 3.5 0 1 0 7 0a3.5 3.5 0 1 0 -7 0"),
    "diamond": _filled("M13 1.5L17.5 6L13 10.5L8.5 6Z"),
    "square": _filled("M10 3H16V9H10Z"),
    "triangle-up": _filled("M13 1.8L17.2 9.4H8.8Z"),
    "triangle-down": _filled("M13 10.2L17.2 2.6H8.8Z"),
    "cross": _filled("M11.8 2H14.2V4.8H17V7.2H14.2V10H11.8V7.2H9V4.8H11.8Z"),
    "star": _filled("M13 1L14.4 4.3L18 4.6L15.3 7L16.1 10.5L13 8.6L9.9 10.5L10.7 7L8 4.6L11.6 4.3Z"),
    "hexagon": _filled("M13 2L16.5 4V8L13 10L9.5 8V4Z"),
    "x": _filled("M10 4L11 3L13 5L15 3L16 4L14 6L16 8L15 9L13 7L11 9L10 8L12 6Z"),
}


def _facts(results: Mapping[str, Any]) -> dict[str, str]:
    provenance = results.get("provenance") or {}
    titles = {
        "polytask": "polytask",
        "torch": "PyTorch",
        "python": "Python",
        "commit": "Commit",
        "hardware": "Hardware",
        "date": "Date",
    }
    facts = {titles.get(key, key): str(value) for key, value in provenance.items() if value not in (None, "")}
    return facts or {"Versions": "not recorded"}


def _typeset(formula: str) -> str:
    return escape(formula).replace("^l", "<sup>l</sup>").replace("M_single", "M<sub>single</sub>")


def _budget(budget: Mapping[str, Any]) -> str:
    rates = ", ".join(f"{rate:g}" for rate in budget.get("learning_rates") or [])
    seeds = ", ".join(str(seed) for seed in budget.get("seeds") or [])
    steps = budget.get("steps")
    parts = [
        f"{steps:,} steps" if steps else "",
        f"learning rates {rates}" if rates else "",
        f"seeds {seeds}" if seeds else "",
    ]
    return "; ".join(part for part in parts if part) or "not recorded"


def _sources(recipe: str | None, facts: Mapping[str, str], heading: str = "Recipe") -> str:
    shown = (
        f'<pre tabindex="0" aria-label="{heading}"><code>{escape(recipe)}</code></pre>'
        if recipe
        else "<p>No recipe.yaml here.</p>"
    )
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts.items())
    return (
        f'<div class="block sources"><div><h2>{heading}</h2>{shown}</div>'
        f"<div><h2>Versions and hardware</h2><dl>{rows}</dl></div></div>"
    )


def _document(page: Page, title: str) -> str:
    from plotly.offline import get_plotlyjs

    here = files("polytask.evaluation.report")
    style, draw = ((here / name).read_text(encoding="utf-8") for name in ("style.css", "draw.js"))
    # "<" is written so that no name in the data can end the script.
    specs = json.dumps(page.specs, separators=(",", ":"), ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(title)}</title>
<link rel="icon" href="data:,">
<style>
{style}</style>
</head>
<body>
<main>
<div class="masthead"><b>polytask</b><span>{escape(title.removesuffix(" · polytask"))}</span></div>
{chr(10).join(page.blocks)}
<noscript><p>The figures need JavaScript; the tables and texts are complete without it.</p></noscript>
</main>
<footer>One file, no network: everything that this page shows is in it.</footer>
<script>{get_plotlyjs()}</script>
<script type="application/json" id="figures">{specs}</script>
<script>
{draw}</script>
</body>
</html>
"""
