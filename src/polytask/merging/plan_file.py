"""From a file or a mapping, ours or mergekit's, to a checked plan."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polytask.core.documents import changed, parsed_settings, parsed_yaml, read_text
from polytask.core.errors import BadValue, DataError, nearest_beside
from polytask.core.validation import validated
from polytask.merging.mergekit import is_mergekit, translated
from polytask.merging.plan import MergePlan


@dataclass(frozen=True)
class Read:
    """A plan and where it came from.

    Attributes:
        plan: checked.
        departures: what a mergekit file says that is done otherwise here, a line each.
        places: folders from which its relative paths start, in order.
    """

    plan: MergePlan
    departures: tuple[str, ...]
    places: tuple[Path, ...]


def read_plan(
    plan: str | Path | Mapping[str, Any] | MergePlan,
    settings: Mapping[str, Any] | Sequence[str] = (),
    *,
    compatible: bool = False,
) -> Read:
    """A checked plan.

    Args:
        plan: a file, or its content.
        settings: changes: {"rule.density": 0.2} or ["rule.density=0.2"].
        compatible: of a mergekit file, follow mergekit's documented formulas where the papers' differ.
    """
    if isinstance(plan, MergePlan):
        values, where, places = plan.resolved(), "plan", (Path(),)
    elif isinstance(plan, Mapping):
        values, where, places = dict(plan), "plan", (Path(),)
    else:
        path = Path(plan)
        values, where, places = _values(path), str(path), tuple(dict.fromkeys([path.parent, Path()]))
    departures: list[str] = []
    if is_mergekit(values):
        translation, departures = translated(values, where, compatible=compatible)
        values = translation.resolved()
    elif compatible:
        raise BadValue("--compat", "mergekit", "only with a mergekit file (merge_method: ...)", where)
    for key, value in parsed_settings(settings, "rule.density=0.2").items():
        values = _set(values, key, value)
    return Read(validated(MergePlan, values, "plan"), tuple(departures), places)


def _set(values: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """One change; `rule.density` is where the plan may have it, in `rule` or in its `parameters`."""
    head, _, rest = key.partition(".")
    rule = values.get("rule")
    if head == "rule" and rest and isinstance(rule, Mapping) and "parameters" in rule and rest != "kind":
        return changed(values, f"rule.parameters.{rest.removeprefix('parameters.')}", value)
    model = values.get("tasks", {}).get(rest.partition(".")[0]) if head == "tasks" else None
    if isinstance(model, str):
        task, _, inner = rest.partition(".")
        values = changed(values, f"tasks.{task}", {"model": model}) if inner else values
    return changed(values, key, value)


def _values(path: Path) -> dict[str, Any]:
    if path.is_dir():
        raise DataError(f"{path}: is a folder; allowed: a plan's file (or --rule, --base and --task)")
    if not path.is_file():
        raise DataError(f"{path}: no such plan{nearest_beside(path)}")
    values = parsed_yaml(read_text(path, "plan"), str(path))
    if not isinstance(values, dict):
        raise BadValue("a plan", values, "a mapping (version, base, tasks, rule), or mergekit's", str(path))
    return values
