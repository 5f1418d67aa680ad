"""The toy with walls: its losses, who reaches the front, and what is made of it."""

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import toy, toy_picture, toy_words
from polytask.core.errors import CheckpointError
from polytask.core.rules import rule_names


def test_the_losses_at_a_point_worked_by_hand() -> None:
    # x2 = 0: both weights are tanh(0) = 0. x = (0, -1): only q1 and q2 count, with weight tanh(1/2) = 0.46211716;
    # q1 = q2 = (49 + 0.1 * 49) / 10 - 20 = -14.61, so the losses are 0.1 * -6.7515 and -6.7515.
    found = toy.losses(torch.tensor([[3.0, 0.0], [0.0, -1.0]], dtype=torch.float64))
    torch.testing.assert_close(found, torch.tensor([[0.0, 0.0], [-0.675153, -6.751532]], dtype=torch.float64))


def test_the_front_is_where_the_gradients_oppose_each_other() -> None:
    line = toy.front(3)
    np.testing.assert_allclose(line[:, 1], [-8.434, -8.3552, -8.434], atol=1e-3)  # of an independent computation
    gradients = toy.seen_at(torch.from_numpy(line)).gradients[1]
    cosine = torch.nn.functional.cosine_similarity(gradients[0], gradients[1], dim=0)
    assert float(cosine) == pytest.approx(-1, abs=1e-6)


def test_the_wall_stops_the_sum_of_the_losses_and_not_nash_mtl_nor_famo() -> None:
    """A short walk from a point on the papers' hardest path, above the wall at x1 = 5."""
    names = ["equal", "nash_mtl", "famo"]
    _, places = toy.walked(names, [(5.3, 4.4)], steps=1200)
    ends = dict(zip(names, places[:, -1, 1], strict=True))
    assert ends["equal"] > 4
    assert max(ends["nash_mtl"], ends["famo"]) < 3.5


def test_arrival_is_the_step_from_which_it_stays() -> None:
    line = np.array([[-7.0, -8.0], [7.0, -8.0]])
    path = np.array([[0.0, 0.0], [0.0, -8.0], [0.0, -7.0], [0.0, -8.01], [1.0, -8.0]])
    assert toy.arrival(path, line) == 30
    assert toy.arrival(path[:3], line) is None
    assert toy.distance(np.array([[9.0, -8.0]]), line)[0] == pytest.approx(2)


def test_every_expectation_is_about_a_registered_rule() -> None:
    assert not set(toy.EXPECTED) - set(rule_names())


def test_all_fitting_rules_take_a_step_and_are_drawn_and_told(tmp_path: Path) -> None:
    measured = toy.measure(steps=3)
    assert measured["left_out"]["maxl"] == "needs forward"
    assert {"equal", "famo", "agr_rand"} <= set(measured["rules"])
    assert not [about["errors"] for about in measured["rules"].values() if about["errors"]]
    drawn = toy_picture.figure(measured)
    assert len(drawn.layout.annotations) == len(measured["rules"])
    text = toy_words.table(measured)
    assert text.count("\n") == len(measured["rules"]) + 1
    assert "| mgda | 0 of 5 **!** | 5 | – |" in text
    assert "`mgda` (0 of 5, expected 5)" in toy_words.sentences(measured)
    assert "Without a walk yet" not in toy_words.sentences(measured)


def test_rules_that_came_after_a_result_are_named() -> None:
    measured = toy.measure(["equal", "mgda"], steps=3)
    text = toy_words.sentences(measured)
    assert "`coba` (needs validation)" in text
    assert "Without a walk yet: `uncertainty`, " in text


def test_later_rules_join_where_they_walked_alike() -> None:
    first, second = toy.measure(["equal"], steps=3), toy.measure(["mean"], steps=3)
    assert list(toy.joined(first, second)["rules"]) == ["equal", "mean"]
    with pytest.raises(CheckpointError, match="steps is 3 and 4"):
        toy.joined(first, {**second, "steps": 4})


def test_an_error_of_a_rule_is_told_and_ends_only_its_walk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(toy.PARAMETERS, "famo", {"decay": 0.0, "min_losses": 1e6})
    measured = toy.measure(["famo", "equal"], steps=10)
    assert "step 0: rule 'famo': the loss of task 'first'" in toy_words.sentences(measured)
    assert measured["rules"]["equal"]["errors"] == []
    assert measured["rules"]["famo"]["ends"] == [list(start) for start in toy.STARTS]
