"""Runs on a table with missing labels: every architecture that reads one, with every kind of rule."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.sharing.models import CASES, TABLE, on_graphs, on_pictures, options_of

import polytask
from polytask.sharing import SHARING

KINDS = [case for case in CASES if not on_pictures(case) and not on_graphs(case)]
RULES: dict[str, Any] = {
    "loss": "uncertainty",
    "gram": "pcgrad",
    "elementwise": "graddrop",
    "representation": {"kind": "mgda", "engine": {"kind": "representation"}},
}
SHARES_NO_REPRESENTATION = ("single", "stem", "safe", "domain_experts", "film inside a table")


def table() -> dict[str, np.ndarray]:
    """Half of the labels are missing; in batches of three rows a task is often absent."""
    draw = np.random.default_rng(0)
    columns = {f"x{number}": draw.normal(size=30) for number in range(5)}
    columns |= {name: draw.choice(list("abc"), size=30) for name in TABLE.names}
    labels = {
        "click": draw.integers(0, 2, 30).astype(float),
        "topic": draw.normal(size=30),
        "assays": draw.integers(0, 3, 30).astype(float),
    }
    for values in labels.values():
        values[draw.permutation(24)[:14]] = np.nan
    return {**columns, **labels, "split": np.repeat(["train", "valid", "test"], [24, 3, 3])}


def recipe(case: str, rule: Any) -> dict[str, Any]:
    reads = SHARING.find(options_of(case)["kind"]).reads
    encoder = {"kind": "columns", "width": 8} if "sequence" in reads else {"kind": "tabular", "hidden_sizes": [9, 8]}
    return {
        "version": 1,
        "data": {"split": "split"},
        "tasks": {"click": "binary", "topic": "regression", "assays": "multiclass"},
        "model": {"encoder": encoder, "sharing": options_of(case)},
        "train": {"rule": rule, "steps": 2, "batch_size": 3, "threads": 1},
    }


@pytest.mark.slow
@pytest.mark.parametrize("case", KINDS)
def test_every_architecture_trains_by_every_kind_of_rule_and_predicts(case: str, tmp_path: Path) -> None:
    given = table()
    for name, rule in RULES.items():
        if (name == "representation" and case in SHARES_NO_REPRESENTATION) or (name != "loss" and case == "single"):
            continue  # nothing is shared there
        polytask.train(recipe(case, rule), out=tmp_path / name, data={"data": given})
    trained = polytask.load(tmp_path / "loss")
    found = trained.predict(given)
    assert found.columns[:2] == ["click", "topic"]
    assert np.isfinite(found.to_numpy()).all()
    alone = trained.predict(given, ["topic"])["topic"].to_numpy()
    np.testing.assert_allclose(alone, found["topic"].to_numpy(), rtol=1e-5, atol=1e-6)
