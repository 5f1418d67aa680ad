"""The report of a merged model."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from polytask.core.errors import CheckpointError
from polytask.evaluation.report import write_report
from polytask.evaluation.report.merges import headline, lede, panels
from polytask.evaluation.report.merging import Merge, read_merge


def layer(name: str, cosine: float | None, norms: tuple[float, ...] = (1.0, 2.0)) -> dict[str, Any]:
    return {
        "layer": name,
        "elements": 10,
        "norms": list(norms),
        "merged_norm": 1.5,
        "base_norm": 10.0,
        "cosines": [[1.0, cosine], [cosine, 1.0]],
        "conflicts": [[0.0, 0.25], [0.25, 0.0]],
    }


def write_merge(folder: Path, **changes: Any) -> Path:
    """What the merge of two tasks leaves, without its weights."""
    folder.mkdir(parents=True)
    layers = [layer("model.layers.0", 0.5), layer("model.layers.1", -0.5), layer("model.norm", None)]
    whole = {key: value for key, value in layer("", 0.1).items() if key != "layer"}
    measured = {"version": 1, "kind": "merge", "tasks": ["m<th", "code"], "whole": whole, "layers": layers, **changes}
    (folder / "interference.json").write_text(json.dumps(measured))
    card = {"rule": "ties", "parameters": 30, "parents": {"base": {"model": "some/base"}}, "versions": {"torch": "2"}}
    (folder / "card.json").write_text(json.dumps(card))
    (folder / "plan.yaml").write_text("version: 1\nrule: {kind: ties}\n")
    return folder


def test_the_words_say_who_disagrees_and_where(tmp_path: Path) -> None:
    merge = read_merge(write_merge(tmp_path / "x"))
    assert headline(merge) == "2 models merged by <strong>ties</strong>; m&lt;th and code are least alike, cosine 0.10."
    assert "change 25&nbsp;% of the elements that both change in opposite directions" in lede(merge)
    assert "The layer that disagrees most is model.layers.1, mean cosine −0.50." in lede(merge)


def test_the_figures_hold_the_measured_values(tmp_path: Path) -> None:
    agree, disagree, lengths = panels(read_merge(write_merge(tmp_path / "x")))
    cosines, signs = (plot.spec["data"][0]["z"] for plot in agree.plots)
    assert cosines == [[None, 0.1], [0.1, None]]
    assert signs == [[None, 0.5], [0.5, None]]  # a quarter opposite, three quarters equal
    (line,) = disagree.plots[0].spec["data"]
    assert (line["x"], line["y"]) == (["model.layers.0", "model.layers.1", "model.norm"], [0.5, -0.5, None])
    drawn = {trace["name"]: trace["y"] for trace in lengths.plots[0].spec["data"]}
    assert drawn == {"m<th": [0.1] * 3, "code": [0.2] * 3, "merged": [0.15] * 3}


def test_masks_are_compared_where_there_are_transforms(tmp_path: Path) -> None:
    whole = {**layer("", 0.1), "kept": [[0.5, 0.2], [0.2, 0.3]]}
    (agree, *_) = panels(read_merge(write_merge(tmp_path / "x", whole=whole)))
    assert [plot.heading for plot in agree.plots] == ["Cosines", "Signs", "Masks"]
    assert agree.plots[2].spec["data"][0]["z"][0][1] == pytest.approx(0.2 / 0.6, abs=1e-5)
    assert "m&lt;th keeps 50&nbsp;%, code keeps 30&nbsp;%" in agree.caption


def test_one_task_has_no_pairs(tmp_path: Path) -> None:
    alone = {
        "elements": 1,
        "norms": [1.0],
        "merged_norm": 1.0,
        "base_norm": 0.0,
        "cosines": [[1.0]],
        "conflicts": [[0.0]],
    }
    merge = Merge(
        tmp_path, {"tasks": ["a"], "whole": alone, "layers": [{"layer": "x", **alone}]}, {"rule": "linear"}, None
    )
    assert headline(merge) == "1 model merged by <strong>linear</strong>."
    assert panels(merge) == []


def test_merges_stand_beside_one_another_in_one_page(tmp_path: Path) -> None:
    directories = [write_merge(tmp_path / name) for name in ("first", "second")]
    page = write_report(directories, tmp_path / "report.html").read_text()
    assert '<a href="#merge-2">second</a>: 2 models merged by' in page
    assert page.count('<section class="result"') == 2
    assert "m<th" not in re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    assert "<h2>Plan</h2>" in page
    assert "some/base" in page
    assert write_report(directories, tmp_path / "again.html").read_text() == page


@pytest.mark.parametrize("text", ["{", "[]", '{"tasks": []}'])
def test_a_damaged_file_is_named(tmp_path: Path, text: str) -> None:
    folder = write_merge(tmp_path / "x")
    (folder / "interference.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"interference\.json: "):
        write_report([folder], tmp_path / "report.html")
