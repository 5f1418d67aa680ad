"""The README.md of a checkpoint directory, in words."""

from collections.abc import Mapping
from typing import Any


def model_card(card: Mapping[str, Any]) -> str:
    """Markdown from card.json: what the model does, how well, and how to use it."""
    tasks = card.get("tasks", {})
    lines = [f"# One model for {len(tasks)} {'task' if len(tasks) == 1 else 'tasks'}", ""]
    lines += ["Made by polytask " + str(card.get("versions", {}).get("polytask", "")) + ".", ""]
    lines += ["| task | kind | metric | validation | test |", "|---|---|---|---|---|"]
    for task, facts in tasks.items():
        row = [task, facts.get("kind", ""), facts.get("metric", "")]
        row += [_number(card.get("metrics", {}).get(split, {}).get(task)) for split in ("valid", "test")]
        lines.append("| " + " | ".join(row) + " |")
    lines += [
        "",
        "Predict on new rows:",
        "",
        "    polytask predict THIS_DIRECTORY --data new.csv --out predictions.parquet",
        "",
    ]
    facts = {key: card[key] for key in ("rule", "sharing", "seed", "step", "parameters") if key in card}
    lines += [f"- {key}: {value}" for key, value in facts.items()]
    lines += [f"- {name}: {version}" for name, version in card.get("versions", {}).items()]
    return "\n".join(lines) + "\n"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
