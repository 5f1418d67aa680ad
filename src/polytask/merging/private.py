"""Which tensors of polytask's own models belong to one task: its head, and what its architecture keeps apart."""

from collections.abc import Mapping
from urllib.parse import unquote

from polytask.merging.inputs import Inputs


def owners(inputs: Inputs) -> dict[str, list[str]]:
    """Task of some model -> the inputs whose model has it. Empty unless all are polytask's.

    Only a task that some input lacks is private; one that all have is merged like everything else.
    """
    models = inputs.tasks
    if not all(model.kind == "polytask" for model in models.values()):
        return {}
    found: dict[str, list[str]] = {}
    for name, model in inputs.named.items():
        for task in model.config.get("outputs", {}):
            found.setdefault(task, []).extend([name] if name != "base" else [])
    return {task: having for task, having in found.items() if len(having) < len(models)}


def owner_of(name: str, private: Mapping[str, list[str]]) -> list[str] | None:
    """The inputs that have the task to which a tensor belongs; None where it belongs to no private task.

    A task's modules are stored under its name, with dots percent-encoded.
    """
    parts = (unquote(part) for part in name.split("."))
    return next((private[part] for part in parts if part in private), None)
