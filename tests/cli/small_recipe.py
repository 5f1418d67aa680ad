"""A small table and a recipe of two steps on it."""

from pathlib import Path

import numpy as np
import polars as pl
import yaml


def table(rows: int = 90) -> pl.DataFrame:
    """Two numbers and a colour; a binary, a multiclass and a regression label; a split column."""
    random = np.random.default_rng(0)
    a, b = random.normal(size=(2, rows)).round(3)
    colour = random.choice(["blue", "green", "red"], rows)
    return pl.DataFrame(
        {
            "a": a,
            "b": b,
            "colour": colour,
            "sold": (a + (colour == "red") > 0).astype(int),
            "size": np.where(b > 0.5, "L", np.where(b < -0.5, "S", "M")),
            "price": (3 * b + 10).round(3),
            "split": (["train"] * 4 + ["valid", "test"]) * (rows // 6),
        }
    )


def recipe(**changes: object) -> dict:
    """Two steps on that table."""
    return {
        "version": 1,
        "data": {"table": "x.csv", "split": "split"},
        "tasks": {"sold": {"kind": "binary"}, "size": {"kind": "multiclass"}, "price": {"kind": "regression"}},
        "model": {"encoder": {"kind": "tabular", "hidden_sizes": [8]}},
        "train": {"steps": 2, "batch_size": 16, "threads": 1},
        **changes,
    }


def write_recipe(path: Path, **changes: object) -> Path:
    path.write_text(yaml.safe_dump(recipe(**changes), sort_keys=False))
    return path
