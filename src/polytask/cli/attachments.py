"""The attachments in `polytask rules`: what is added at the representation that tasks share."""

from typing import Any

from polytask.core.catalogue import summary
from polytask.sharing.names import ATTACHMENTS


def described(name: str) -> dict[str, Any]:
    """What the JSON listing says of an attachment."""
    found = ATTACHMENTS.find(name)
    options = {key: about for key, about in found.Options.model_fields.items() if key != "kind"}
    return {
        "name": name,
        "form": "attachment",
        "summary": summary(found),
        "transforms": found.transforms,
        "term": found.has_term,
        "trains_itself": found.trains_itself,
        "parameters": {key: {"default": about.default} for key, about in options.items()},
        "calls": calls(found),
    }


def calls(attachment: Any) -> list[str]:
    """What a training loop calls, in order."""
    found = []
    if attachment.transforms:
        found.append("representations = attachment.transform({task: representation for task in tasks})")
    if attachment.calibrates_branches:
        found.append("outputs = attachment.branches({modality: output of its branch})  # and fuse these")
    if attachment.has_term:
        found.append("attachment.backward(losses, representation)  # before the losses' own backward pass")
    return found


def listed() -> list[tuple[str, str]]:
    """(name, what it does and its options) of each."""
    rows = []
    for name in ATTACHMENTS.names():
        about = described(name)
        options = f"\nparameters {', '.join(about['parameters'])}" if about["parameters"] else ""
        rows.append((name, (about["summary"].partition(": ")[2] or about["summary"]) + options))
    return rows


def fields(name: str) -> list[tuple[str, str]]:
    """(heading, text) of one in full, after the fields of its docstring."""
    found = ATTACHMENTS.find(name)
    options = [f"{key}: default {about['default']!r}" for key, about in described(name)["parameters"].items()]
    roles = [
        text
        for holds, text in (
            (found.transforms, "the model computes with it, and is saved with it"),
            (found.has_term, "a term of the training loss"),
            (found.calibrates_branches, "between an encoder's modality branches and what fuses them"),
            (found.trains_itself, "an optimiser of its own"),
        )
        if holds
    ]
    made = f"attachment = polytask.attachment({name!r}, tasks, width)"
    return [
        ("Is", "\n".join(roles)),
        ("Parameters", "\n".join(options) or "none"),
        ("In a loop", "\n".join([made, *calls(found)])),
        ("In a recipe", f"train: {{attachments: [{name}]}}"),
    ]
