"""A drafted recipe as YAML, each guess as a comment beside what it is about."""

from collections.abc import Mapping, Sequence
from typing import Any

import yaml


def draft_text(recipe: Mapping[str, Any], remarks: Sequence[str], table: str) -> str:
    """The file that `polytask init` writes.

    Args:
        recipe: plain data.
        remarks: `path.in.recipe: what to check`.
        table: where the guesses come from.
    """
    by_place: dict[str, list[str]] = {}
    for remark in remarks:
        place, text = _noted(recipe, remark)
        by_place.setdefault(place, []).append(text)
    lines_without_place = [f"# check: {text}" for text in by_place.get("", [])]
    lines = [f"# Drafted from {table}. Lines that begin with # check: are guesses.", *lines_without_place]
    for key, value in recipe.items():
        lines += _entry(key, value, key, by_place, 0)
    return "\n".join(lines) + "\n"


def _noted(recipe: Mapping[str, Any], remark: str) -> tuple[str, str]:
    """(the longest beginning of the remark's place that is in the recipe, the text)."""
    place, _, text = remark.partition(": ")
    parts = place.split(".")
    current: Any = recipe
    for depth, part in enumerate(parts):
        if not isinstance(current, Mapping) or part not in current:
            found = ".".join(parts[:depth])
            return (found, text) if found else ("", remark)
        current = current[part]
    return place, text


def _entry(key: str, value: Any, place: str, notes: Mapping[str, list[str]], depth: int) -> list[str]:
    """One key with its comments above; mappings two levels deep are blocks, deeper ones stand in one line."""
    indent = "  " * depth
    lines = [f"{indent}# check: {text}" for text in notes.get(place, [])]
    if isinstance(value, Mapping) and value and depth < 1:
        lines.append(f"{indent}{_inline(key)}:")
        for inner, below in value.items():
            lines += _entry(str(inner), below, f"{place}.{inner}", notes, depth + 1)
        return lines
    deeper = [f"{indent}# check: {text}" for other in notes if other.startswith(f"{place}.") for text in notes[other]]
    return [*lines, *deeper, f"{indent}{_inline(key)}: {_inline(value)}"]


def _inline(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, allow_unicode=True, width=10**9).strip()
    return text.removesuffix("...").strip()
