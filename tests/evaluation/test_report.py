"""Reading of directories and the words of the page; tests/browser opens it."""

import html
import json
import re
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from polytask.core.errors import CheckpointError, MissingInput
from polytask.evaluation.report import write_report
from polytask.evaluation.report.figures import CostPoint, late_range, looks, name_places
from polytask.evaluation.report.lines import line
from polytask.evaluation.report.panels import sharpness_panel
from polytask.evaluation.report.reading import MOST_POINTS, Events, Run, Study, Variant, read, read_events
from polytask.evaluation.report.words import comparison_headline
from polytask.evaluation.table import comparison


def events(path: Path, lines: list[dict[str, Any]], tail: str = "") -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + tail, encoding="utf-8")
    return path


def step(number: int, **values: Any) -> dict[str, Any]:
    return {"event": "step", "step": number, "losses": {"a": float(number)}, "weights": {"a": 1.0}, **values}


def plain(sentence: str) -> str:
    return html.unescape(re.sub("<[^>]+>", "", sentence)).replace("\N{NO-BREAK SPACE}", " ")


def test_long_streams_are_thinned_to_means(tmp_path: Path) -> None:
    stream = read_events(events(tmp_path / "e", [step(n) for n in range(1, 10 * MOST_POINTS + 1)]))
    assert stream.steps_a_point == 10
    assert len(stream.losses["a"]) == MOST_POINTS
    assert stream.losses["a"][10] == pytest.approx(5.5)  # the mean of 1 ... 10, drawn at the last of them
    assert stream.last_step == 10 * MOST_POINTS


def test_short_streams_are_kept_as_they_are(tmp_path: Path) -> None:
    cosines = {"tasks": ["a", "b", "c"], "values": [[1, 0.1, -0.2], [0.1, 1, 0.3], [-0.2, 0.3, 1]]}
    stream = read_events(events(tmp_path / "e", [step(1), step(2, cosines=cosines)]))
    assert stream.losses["a"] == {1: 1.0, 2: 2.0}
    assert stream.cosines == {("a", "b"): {2: 0.1}, ("a", "c"): {2: -0.2}, ("b", "c"): {2: 0.3}}


def test_sharpness_is_drawn_where_it_was_measured(tmp_path: Path) -> None:
    found = [step(n, measured={"sharpness": {"a": 0.5 / n, "b": None}, "validation": {"a": 9.0}}) for n in (1, 2)]
    stream = read_events(events(tmp_path / "e", found))
    assert stream.sharpness == {"a": {1: 0.5, 2: 0.25}}
    panel = sharpness_panel([Variant("flat", False, (stream,)), Variant("equal", False, (Events(),))], ["a", "b"])
    assert panel is not None
    assert [plot.label for plot in panel.plots] == ["Sharpness of the tasks under flat by step; at the end: a 0.25."]
    assert sharpness_panel([Variant("equal", False, (Events(),))], ["a"]) is None


def test_a_line_cut_by_a_kill_is_left_out_and_other_damage_is_an_error(tmp_path: Path) -> None:
    assert read_events(events(tmp_path / "a", [step(1)], tail='{"event": "st')).last_step == 1
    with pytest.raises(CheckpointError, match="line 2 is damaged"):
        read_events(events(tmp_path / "b", [step(1)], tail='{"event": "st\n{}\n'))
    with pytest.raises(CheckpointError, match="line 1 is no event"):
        read_events(events(tmp_path / "c", [], tail="[]\n"))


def test_undefined_metrics_are_no_points(tmp_path: Path) -> None:
    found = [
        {"event": "evaluate", "step": n, "split": "valid", "metrics": {"a": {"auroc": v}}}
        for n, v in ((1, None), (2, 0.7))
    ]
    assert read_events(events(tmp_path / "e", found)).metrics == {"a": {"auroc": {2: 0.7}}}


def test_line_is_the_mean_and_range_of_the_seeds() -> None:
    found = line([{1: 1.0, 2: 2.0}, {1: 3.0}])
    assert found is not None
    assert (found.steps, found.mean, found.low, found.high) == ((1, 2), (2.0, 2.0), (1.0, 2.0), (3.0, 2.0))
    assert line([{}, {}]) is None


def test_axis_leaves_out_the_start_only_where_that_helps() -> None:
    steep = line([{step: 1 - 0.9 * 0.9**step for step in range(1, 101)}])
    level = line([{step: step / 100 for step in range(1, 101)}])
    assert steep is not None
    assert level is not None
    shown = late_range({"x": steep})
    assert shown is not None
    assert shown[0] < 1 - 0.9 * 0.9**20 < 1 < shown[1] + 0.01
    assert late_range({"x": level}) is None


def test_names_of_marks_that_nearly_touch_part() -> None:
    places = name_places(
        [
            CostPoint("single", 24.0, 0.0, None, None),
            CostPoint("lower", 7.3, -0.9, 3.0, None),
            CostPoint("upper", 7.9, -0.7, 3.0, None),
            CostPoint("far", 16.0, -0.9, 3.0, None),
        ],
        "single",
    )
    assert places == {"single": "top left", "lower": "bottom right", "upper": "top right", "far": "middle right"}


def test_no_two_series_look_alike() -> None:
    names = [f"rule-{i}" for i in range(24)]
    found = looks(names, baseline="rule-3")
    assert len({(look.colour, look.dash) for look in found.values()}) == 24


def test_directories_are_told_apart(run_directories: ModuleType, tmp_path: Path) -> None:
    run_directories.write_compare(tmp_path / "compare", seeds=2)
    run_directories.write_run(tmp_path / "run", run_directories.TASKS, run_directories.FINAL)
    study, run = read(tmp_path / "compare"), read(tmp_path / "run")
    assert isinstance(study, Study)
    assert [variant.name for variant in study.variants] == ["single", "equal", "uncertainty", "upgrad"]
    assert list(study.variants[0].streams[0].metrics) == ["left", "right", "sum"]
    assert study.recipe is not None
    assert isinstance(run, Run)
    assert run.events.stop == "all steps done"


def test_what_is_no_directory_of_ours_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="neither a run, a compare nor a merge"):
        read(tmp_path)
    with pytest.raises(CheckpointError, match="no such directory"):
        read(tmp_path / "missing")
    (tmp_path / "results.json").write_text('{"kind": ', encoding="utf-8")
    with pytest.raises(CheckpointError, match="damaged"):
        read(tmp_path)
    with pytest.raises(MissingInput, match="at least one"):
        write_report([], tmp_path)


def test_headline_says_what_was_found(run_directories: ModuleType, tmp_path: Path) -> None:
    table = comparison(run_directories.write_compare(tmp_path, seeds=5))
    row = table.chosen
    assert row is not None
    assert row.delta is not None
    sentence = plain(comparison_headline(table))
    assert sentence.startswith(f"One model for 3 tasks: {row.name} is +{row.delta.estimate.mean:.1f} % (95 % interval ")
    assert "against three single-task models, with 33 % of their parameters and 3" in sentence
    assert sentence.endswith("no task is worse, 3 are better.")


def test_headline_of_one_seed_claims_no_verdict(run_directories: ModuleType, tmp_path: Path) -> None:
    sentence = plain(comparison_headline(comparison(run_directories.write_compare(tmp_path, seeds=1))))
    assert "(one seed, no interval)" in sentence
    assert sentence.endswith("with one seed no task can be called better or worse.")


def test_same_directories_give_the_same_bytes(run_directories: ModuleType, tmp_path: Path) -> None:
    run_directories.write_compare(tmp_path / "compare", seeds=2)
    first = write_report([tmp_path / "compare"], tmp_path / "a.html").read_bytes()
    assert write_report([tmp_path / "compare"], tmp_path / "b.html").read_bytes() == first
    assert write_report([tmp_path / "compare"], tmp_path) == tmp_path / "report.html"
    assert not list(tmp_path.glob(".*partial"))


def test_names_from_the_data_are_escaped(run_directories: ModuleType, tmp_path: Path) -> None:
    task = '</script><img src=x onerror="alert(1)">'
    tasks = {task: {"kind": "binary", "metric": "auroc", "higher_is_better": True}}
    run_directories.write_run(tmp_path / "run", tasks, {task: (0.5, 0.8)})
    page = write_report([tmp_path / "run"], tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<img" not in page.split("</style>")[1].split("<script>")[0]
    figures = page.split('id="figures">')[1].split("</script>")[0]
    json.loads(figures)


def test_the_report_says_what_tells_a_network_its_task(run_directories: ModuleType, tmp_path: Path) -> None:
    run_directories.write_run(tmp_path / "run", run_directories.TASKS, run_directories.FINAL)
    results = json.loads((tmp_path / "run" / "results.json").read_text(encoding="utf-8"))
    assert "told its task" not in write_report([tmp_path / "run"], tmp_path).read_text(encoding="utf-8")
    words = {"left": "channels 1 to 4 of 7", "right": "channels 1 to 4 of 7", "sum": "channels 4 to 7 of 7"}
    (tmp_path / "run" / "results.json").write_text(json.dumps({**results, "conditioning": words}), encoding="utf-8")
    page = write_report([tmp_path / "run"], tmp_path).read_text(encoding="utf-8")
    assert "told its task: left and right by channels 1 to 4 of 7; sum by channels 4 to 7 of 7." in page


def scored_by_source(run: Path, number: float) -> None:
    """Says of a run that the task left has labels in two sources, one of them held out."""
    results = json.loads((run / "results.json").read_text(encoding="utf-8"))
    scores = {"<grey>": {"accuracy": 0.9, "log_loss": 0.3}, "edge": {"accuracy": number, "log_loss": 2.0}}
    results["test_by_source"] = {"left": scores}
    (run / "results.json").write_text(json.dumps(results), encoding="utf-8")


def sources_block(page: str) -> list[str]:
    """The cells of the table of sources, as a reader sees them; nothing where there is none."""
    found = re.findall(r'<div class="block"><h2>Sources</h2>.*?</table>', page, re.DOTALL)
    return [
        plain(cell.replace('<span class="under">', " | ")) for cell in re.findall(r"<t[hd].*?</t[hd]>", "".join(found))
    ]


def test_the_report_of_runs_has_each_source_by_itself(run_directories: ModuleType, tmp_path: Path) -> None:
    tasks = {**run_directories.TASKS, "left": {**run_directories.TASKS["left"], "held_out": ["edge"]}}
    for name in ("one", "other"):
        run_directories.write_run(tmp_path / name, tasks, run_directories.FINAL)
    scored_by_source(tmp_path / "one", 0.625)
    page = write_report([tmp_path / "one", tmp_path / "other"], tmp_path).read_text(encoding="utf-8")
    assert sources_block(page) == [
        *("Task", "one", "other"),
        *("left on <grey> | accuracy ↑", "0.9000", "–"),
        *("left on edge | accuracy ↑, held out", "0.6250", "–"),
    ]
    assert not sources_block(write_report([tmp_path / "other"], tmp_path).read_text(encoding="utf-8"))


def test_the_report_of_a_comparison_has_each_source_by_itself(run_directories: ModuleType, tmp_path: Path) -> None:
    """Means over seeds, also of the single-task runs; the half-width of two seeds is 12.706 |a - b| / 2."""
    study = tmp_path / "study"
    results = run_directories.write_compare(study, seeds=2, rules=("equal", "upgrad"))
    for seed, number in enumerate((0.50, 0.52)):
        scored_by_source(study / f"runs/single/seed-{seed}/left", number)
        scored_by_source(study / f"runs/equal/seed-{seed}", number + 0.1)
    results["tasks"] = {**results["tasks"], "left": {**results["tasks"]["left"], "held_out": ["edge"]}}
    (study / "results.json").write_text(json.dumps(results), encoding="utf-8")
    assert sources_block(write_report([study], tmp_path).read_text(encoding="utf-8")) == [
        *("Task", "single", "equal", "upgrad"),
        *("left on <grey> | accuracy ↑", "0.9000 ±0.0000", "0.9000 ±0.0000", "–"),
        *("left on edge | accuracy ↑, held out", "0.5100 ±0.1271", "0.6100 ±0.1271", "–"),
    ]
    shutil.rmtree(study / "runs")
    assert not sources_block(write_report([study], tmp_path).read_text(encoding="utf-8"))


def test_a_run_that_has_not_ended_is_shown_as_such(run_directories: ModuleType, tmp_path: Path) -> None:
    run_directories.write_run(tmp_path / "run", run_directories.TASKS, run_directories.FINAL, finished=False)
    page = write_report([tmp_path / "run"], tmp_path / "report.html").read_text(encoding="utf-8")
    assert "A run that has not ended: 400 steps so far." in page
    assert "Learning curves" in page
