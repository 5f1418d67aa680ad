"""A box a row: what is read, what is refused, and how near two boxes are."""

import json
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from polytask.core.errors import BadValue, DataError
from polytask.sharing.output_tokenizers import Numbers
from polytask.tasks.metrics import METRICS
from polytask.tasks.target import Target
from polytask.tasks.task import Task

SIDES = ("left", "top", "right", "bottom")
BOXES = [[0.0, 0.1, 0.5, 0.6], [0.2, 0.2, 0.4, 1.0], [0.3, 0.0, 0.9, 0.3]]


def frame(boxes: Any = BOXES) -> pl.DataFrame:
    return pl.DataFrame(boxes, schema=SIDES, orient="row")


def task(**options: Any) -> Task:
    return Task(name="thing", kind="boxes", labels=SIDES, **options)


def test_boxes_are_read_and_predicted_by_their_sides() -> None:
    target = Target.fit(task(), frame())
    labels, present = target.encode(frame())
    torch.testing.assert_close(labels, torch.tensor(BOXES))
    assert present.all()
    assert target.outputs == 4
    columns = target.decode(labels)
    assert list(columns) == ["thing.left", "thing.top", "thing.right", "thing.bottom"]
    np.testing.assert_allclose(np.stack(list(columns.values()), axis=1), BOXES, rtol=1e-6)
    assert Target.from_json(json.loads(json.dumps(target.to_json()))) == target


def test_a_box_that_lacks_a_side_is_absent() -> None:
    target, given = Target.fit(task(), frame()), frame([[0.1, None, 0.2, 0.3], [0.1, 0.1, 0.2, 0.3]])
    labels, present = target.encode(given)
    assert present.tolist() == [[False] * 4, [True] * 4]
    numerator, count = target.loss(torch.zeros(2, 4), labels, present)
    assert (round(numerator.item(), 6), count.item()) == (0.7, 4)


def test_overlap_by_hand() -> None:
    """Half of a box: 1/2. A quarter of each of two equal ones in common: 1/7. Nothing in common, an empty guess: 0."""
    true = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.25, 0.25, 0.75, 0.75], [0.0, 0.0, 0.5, 0.5], [0.0, 0.0, 1.0, 1.0]])
    found = torch.tensor([[0.0, 0.0, 1.0, 0.5], [0.5, 0.5, 1.0, 1.0], [0.5, 0.5, 1.0, 1.0], [0.9, 0.9, 0.1, 0.1]])
    everywhere = torch.ones(4, 4, dtype=torch.bool)
    for row, expected in enumerate([1 / 2, 1 / 7, 0.0, 0.0]):
        one = slice(row, row + 1)
        assert METRICS["box_iou"].compute(found[one], true[one], everywhere[one]) == pytest.approx(expected)
    assert METRICS["box_iou"].compute(found, true, everywhere) == pytest.approx((1 / 2 + 1 / 7) / 4)
    assert METRICS["box_iou"].compute(found, true, ~everywhere) is None


def test_the_metrics_of_a_task() -> None:
    target = Target.fit(task(), frame())
    labels, present = target.encode(frame())
    assert target.score(labels, labels, present) == {"box_iou": pytest.approx(1.0), "mae": 0.0}


def test_tokens_of_bins_say_a_side_within_half_a_bin() -> None:
    sides, bins = torch.linspace(0, 1, 101, dtype=torch.float64), 16
    nearest = (sides * bins).long().clamp(max=bins - 1)
    sure = torch.nn.functional.one_hot(nearest, bins).double().log()
    found = Numbers(("left",), 0.0, 1.0, bins).outputs(sure.unsqueeze(1))
    assert (found - sides).abs().max() <= 0.5 / bins + 1e-12


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        (
            [[0.5, 0.0, 0.4, 1.0], BOXES[0]],
            r"1 of 2 labels are no boxes, the first \[0\.5, 0\.0, 0\.4, 1\.0\]; allowed: left < right",
        ),
        ([BOXES[0], [10.0, 20.0, 30.0, 40.0]], r"'left' and on: 1 of 2 labels are no boxes, .*shares of the picture"),
        ([BOXES[0], BOXES[0]], r"not two boxes in training: all boxes are \[0\.0, 0\.1, 0\.5, 0\.6\]"),
        ([[None] * 4], r"not two boxes in training: no label"),
        ([["a", 0.0, 1.0, 1.0]], r"boxes labels of type String: 'a'; allowed: numbers"),
    ],
)
def test_what_is_no_box(boxes: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Target.fit(task(), frame(boxes))


def test_a_box_has_four_columns() -> None:
    with pytest.raises(BadValue, match=r"tasks.thing: labels is \['left', 'top'\]; allowed: four columns: left, top"):
        Target.fit(Task(name="thing", kind="boxes", labels=SIDES[:2]), frame())
