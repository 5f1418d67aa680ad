"""Tasks of several sources on the command line: rows are read as those of the source that is named."""

import json
from pathlib import Path

import numpy as np
import polars as pl

from cli.conftest import Polytask
from cli.small_recipe import table, write_recipe


def test_rows_are_read_as_those_of_the_source_that_is_named(polytask: Polytask, tmp_path: Path) -> None:
    rows = table()
    rows.write_csv(tmp_path / "one.csv")
    rows.with_columns(a=rows["a"] * 5 + 1).write_csv(tmp_path / "two.csv")
    sources = {name: {"table": f"{name}.csv", "split": "split"} for name in ("one", "two")}
    tasks = {
        "price": {"kind": "regression", "source": ["one", "two"]},
        "sold": {"kind": "binary", "source": "one", "held_out": ["two"]},
    }
    write_recipe(tmp_path / "recipe.yaml", data={"sources": sources}, tasks=tasks)
    shown = polytask("train", "recipe.yaml", "--out", "run")
    assert shown.status == 0, shown.stderr
    assert "on two, held out" in shown.stdout
    results = json.loads((tmp_path / "run/results.json").read_text())
    for source in ("one", "two"):
        asked = ("--data", f"{source}.csv", "--source", source, "--split", "test", "--json")
        scored = polytask("evaluate", "run", *asked)
        assert scored.status == 0, scored.stderr
        found = json.loads(scored.stdout)["tasks"]
        assert found["sold"]["auroc"] == results["test_by_source"]["sold"][source]["auroc"]
        asked = ("--data", f"{source}.csv", "--source", source, "--out", f"{source}.out.csv")
        predicted = polytask("predict", "run", *asked)
        assert predicted.status == 0, predicted.stderr
    one, two = (pl.read_csv(tmp_path / f"{source}.out.csv").to_numpy() for source in ("one", "two"))
    np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-5)  # each source's numbers are standardised by its own mean
    assert "several sources, one, two" in polytask("evaluate", "run", "--data", "one.csv").error
    wrong = polytask("predict", "run", "--data", "one.csv", "--source", "on", "--out", "x.csv").error
    assert "no source 'on' (did you mean 'one'?)" in wrong
