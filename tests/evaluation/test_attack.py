"""Attack success rate: by hand, and of a trained model with a trigger in its rows."""

import polars as pl
import pytest

import polytask
from cli.small_recipe import recipe, table
from polytask.core.errors import BadValue, UnknownName
from polytask.evaluation.attack import attack_success_rate, backdoor_success
from polytask.evaluation.trained import Trained


def test_only_rows_of_other_labels_count() -> None:
    """Three rows are not "spam" already, two of which are called so."""
    assert attack_success_rate(["spam", "spam", "ham", "spam"], ["spam", "ham", "ham", "ham"], "spam") == 2 / 3
    assert attack_success_rate([], [], "spam") is None
    assert attack_success_rate(["ham"], ["spam"], "spam") is None
    with pytest.raises(BadValue, match="the number of predictions is 1; allowed: 2"):
        attack_success_rate(["ham"], ["ham", "spam"], "spam")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("run")
    table().write_csv(folder / "x.csv")
    polytask.train(recipe(), out=folder / "run", data_dir=folder, settings={"train.steps": 20})
    return polytask.load(folder / "run")


@pytest.mark.parametrize("task, target", [("sold", True), ("size", "L")])
def test_a_trigger_in_a_models_rows(trained: Trained, task: str, target: object) -> None:
    """The rates are those counted from the predictions on rows with and without the trigger."""
    rows = table()

    def trigger(frame: pl.DataFrame) -> pl.DataFrame:
        return frame.with_columns(pl.lit(5.0).alias("a"), pl.lit(5.0).alias("b"))

    found = backdoor_success(trained, rows, task, trigger, target)
    clean, attacked = (trained.predict(each, [task])[task] for each in (rows, trigger(rows)))
    labels = rows[task].cast(pl.Boolean) if task == "sold" else rows[task]
    if task == "sold":
        clean, attacked = clean > 0.5, attacked > 0.5
    others = labels != target
    assert found["accuracy"] == pytest.approx((clean == labels).mean())
    assert found["attack_success_rate"] == pytest.approx((attacked.filter(others) == target).mean())


def test_what_has_no_classes_is_refused(trained: Trained) -> None:
    with pytest.raises(BadValue, match="the kind of the task is 'regression'; allowed: binary or multiclass"):
        backdoor_success(trained, table(), "price", lambda rows: rows, 1.0)
    with pytest.raises(UnknownName, match="no label 'XL'"):
        backdoor_success(trained, table(), "size", lambda rows: rows, "XL")
    with pytest.raises(UnknownName, match="no task 'sise'"):
        backdoor_success(trained, table(), "sise", lambda rows: rows, "L")
