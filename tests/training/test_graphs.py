"""Runs on generated graphs: tasks on a node, a link and the whole in one model, with every kind of rule."""

from pathlib import Path

import numpy as np
import pytest
from tests.training.test_tables import RULES

import polytask
from polytask.core.errors import Inconsistent

FEW = {
    "data.rows": {"train": 12, "valid": 6, "test": 6},
    "model.encoder.width": 6,
    "train.epochs": None,
    "train.steps": 2,
    "train.batch_size": 6,
    "train.threads": 1,
}


@pytest.mark.parametrize("sharing", ["one_for_all", "hard"])
@pytest.mark.parametrize("kind", [kind for kind in RULES if kind != "representation"])
def test_trains_by_every_kind_of_rule(kind: str, sharing: str, tmp_path: Path) -> None:
    settings = {**FEW, "model.sharing": sharing, "train.rule": RULES[kind]}
    found = polytask.train("graphs", out=tmp_path, settings=settings)
    losses = [found["test"][task]["log_loss"] for task in ("community", "same", "largest")]
    assert np.isfinite(losses).all()


def test_tasks_of_sources_of_their_own_meet_at_no_representation(tmp_path: Path) -> None:
    with pytest.raises(Inconsistent, match="tasks of sources nodes, links, wholes have no rows in common"):
        polytask.train("graphs", out=tmp_path, settings={**FEW, "train.rule": RULES["representation"]})
