"""Reads the directory of a merged model, for the report."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polytask.checkpoints.directory import read_json
from polytask.core.errors import CheckpointError

INTERFERENCE, PLAN, CARD = "interference.json", "plan.yaml", "card.json"


@dataclass(frozen=True)
class Merge:
    """One merged model's directory.

    Attributes:
        measured: of interference.json.
        card: of card.json.
        recipe: the plan.
    """

    path: Path
    measured: Mapping[str, Any]
    card: Mapping[str, Any]
    recipe: str | None

    @property
    def tasks(self) -> list[str]:
        return list(self.measured["tasks"])


def read_merge(directory: Path) -> Merge:
    """CheckpointError for a file that is damaged."""
    measured = read_json(directory / INTERFERENCE)
    if not isinstance(measured, dict) or not {"tasks", "whole", "layers"} <= set(measured):
        raise CheckpointError(f"{directory / INTERFERENCE}: damaged: no tasks, whole and layers")
    card = read_json(directory / CARD) if (directory / CARD).is_file() else {}
    plan = directory / PLAN
    return Merge(directory, measured, card, plan.read_text(encoding="utf-8") if plan.is_file() else None)
