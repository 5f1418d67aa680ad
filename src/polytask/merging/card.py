"""card.json and README.md of a merged model: what was merged, how, and from which files."""

import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from polytask import __version__
from polytask.checkpoints.checkpoint import read_checkpoint
from polytask.checkpoints.hashing import identified
from polytask.merging.assembly import Assembly
from polytask.merging.inputs import Inputs
from polytask.merging.opening import Opened
from polytask.merging.plan import MergePlan


def card(
    plan: MergePlan, inputs: Inputs, assembly: Assembly, notes: Sequence[str], *, whole_hashes: bool = False
) -> dict[str, Any]:
    """card.json but for the output's own files."""
    donor, _ = inputs.donor(plan)
    parents = {name: _parent(model, whole_hashes) for name, model in inputs.named.items()}
    return {
        "version": 1,
        "kind": "merge",
        "tasks": _tasks(plan, inputs),
        "base": plan.base,
        "parents": parents,
        "rule": plan.rule.kind,
        "donor": donor,
        "seed": plan.seed,
        "parameters": sum(job.elements for job in assembly.jobs),
        "tensors": {"merged": len(assembly.merged), "taken": len(assembly.jobs) - len(assembly.merged)},
        "left_out": assembly.left_out,
        "notes": list(notes),
        "metrics": {},
        "versions": {"polytask": __version__, "torch": torch.__version__, "python": platform.python_version()},
    }


def _parent(model: Opened, whole: bool) -> dict[str, Any]:
    facts: dict[str, Any] = {"model": model.reference, "path": str(model.path)}
    if model.revision is not None:
        facts["revision"] = model.revision
    if model.adapter is not None:
        facts["adapter"] = str(model.adapter)
    return {**facts, "files": {file.name: identified(Path(file), whole=whole) for file in model.weights.files()}}


def _tasks(plan: MergePlan, inputs: Inputs) -> dict[str, Any]:
    """Of polytask models their own tasks, as their cards describe them; else the plan's."""
    models = inputs.tasks
    if all(model.kind == "polytask" for model in models.values()):
        found: dict[str, Any] = {}
        for model in models.values():
            for task, facts in read_checkpoint(model.path).card.get("tasks", {}).items():
                found.setdefault(task, facts)
        return found
    return {task: {"model": given.model} for task, given in plan.tasks.items()}


def readme(card: Mapping[str, Any], plan_text: str) -> str:
    """Markdown: what was merged and how; the plan stands whole, so that the page alone tells how to do it again."""
    tasks = list(card["parents"])
    lines = [f"# A merge of {len(tasks) - ('base' in tasks)} models by {card['rule']}", ""]
    lines += [f"Made by polytask {card['versions']['polytask']}.", "", "| input | model |", "|---|---|"]
    lines += [f"| {name} | {_cell(facts)} |" for name, facts in card["parents"].items()]
    merged, taken = card["tensors"]["merged"], card["tensors"]["taken"]
    lines += ["", f"{card['parameters']:,} parameters; {merged:,} tensors merged, {taken:,} taken over."]
    lines += ["", *(f"- {note}" for note in card["notes"])] if card["notes"] else []
    lines += [
        "",
        "The plan (`polytask merge plan.yaml --out DIR` does it again):",
        "",
        "```yaml",
        plan_text.rstrip(),
        "```",
    ]
    return "\n".join(lines) + "\n"


def _cell(facts: Mapping[str, Any]) -> str:
    revision = f" at {facts['revision'][:12]}" if facts.get("revision") else ""
    return f"`{facts['model']}`{revision}".replace("|", "\\|")
