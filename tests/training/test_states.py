"""Heads that predict after each modality: their loss, their predictions, and what a missing modality leaves alone."""

from pathlib import Path

import polars as pl
import pytest
import torch
from tests.training.runs import job, recipe, table

import polytask
from polytask.core.errors import MissingInput
from polytask.tasks.mixture import Mixture, MixtureSpec
from polytask.training.devices import Devices
from polytask.training.losses import task_losses

MODEL = {"encoder": {"kind": "columns", "width": 8, "missing": "hidden"}, "sharing": {"kind": "sequential_state"}}


def rows_with_gaps() -> pl.DataFrame:
    """The second number is missing in every third row, the category in every fourth."""
    row = pl.int_range(pl.len())
    return pl.DataFrame(table()).with_columns(
        pl.when(row % 3 > 0).then("x1").alias("x1"), pl.when(row % 4 > 0).then("kind").alias("kind")
    )


@pytest.mark.parametrize("learn", ["every", "last"])
def test_a_loss_is_the_mean_over_the_states(learn: str) -> None:
    run = job(rows_with_gaps(), model={**MODEL, "sharing": {"kind": "sequential_state", "learn": learn}})
    devices, model = Devices(run.run), run.build().train()
    splits = {name: source.splits["train"] for name, source in run.data.sources.items()}
    pieces = next(iter(Mixture(splits, MixtureSpec(), 32, seed=0).batches(0)))
    with devices.settings(None):
        found = task_losses(model, pieces, run.targets, devices)
    (batch,) = pieces
    for task, outputs in model.after_each(batch.inputs).items():
        assert outputs.shape[1] == 6  # before any, and after each of five columns
        read = outputs.unbind(1) if learn == "every" else [outputs[:, -1]]
        losses = [run.targets[task].loss(each, batch.labels[task], batch.present[task])[0] for each in read]
        expected = torch.stack(losses).mean() / found.counts[task]
        torch.testing.assert_close(found.losses[task], expected)


def test_predictions_after_each_modality(tmp_path: Path) -> None:
    rows = rows_with_gaps()
    results = polytask.train(recipe(model=MODEL, train__epochs=6), out=tmp_path / "run", data={"data": rows})
    assert results["valid"]["click"]["auroc"] > 0.6
    trained = polytask.load(tmp_path / "run")
    stages = trained.predict_after_each(rows)
    assert len(stages) == 6
    assert stages[-1].equals(trained.predict(rows))
    assert stages[0]["click"].n_unique() == 1  # nothing is known of any row
    for place, column in ((2, "x1"), (5, "kind")):
        before, after = (stage.select("click", "price") for stage in stages[place - 1 : place + 1])
        missing = rows[column].is_null()
        assert before.filter(missing).equals(after.filter(missing))
        assert (before["click"] != after["click"]).filter(~missing).all()


def test_what_a_missing_value_would_have_been_changes_nothing(tmp_path: Path) -> None:
    """Also where it is missing in a pattern that training never had."""
    rows = rows_with_gaps()
    polytask.train(recipe(model=MODEL, train__epochs=1), out=tmp_path / "run", data={"data": rows})
    trained, few = polytask.load(tmp_path / "run"), rows.drop_nulls(["x1", "kind"])[:8]
    shown = trained.predict_after_each(few, ["click"])
    hidden = trained.predict_after_each(few.with_columns(x1=None, kind=None), ["click"])
    assert [one.equals(other) for one, other in zip(shown, hidden, strict=True)] == [True] * 2 + [False] * 4
    assert hidden[4].equals(hidden[5])


def test_a_model_that_predicts_once(tmp_path: Path) -> None:
    polytask.train(recipe(train__steps=1, train__epochs=None), out=tmp_path / "run", data={"data": table()})
    with pytest.raises(MissingInput, match="task 'click' is predicted once: only sharing 'sequential_state' predicts"):
        polytask.load(tmp_path / "run").predict_after_each(table())
