"""Which of a model's parameters a stage changes, by the beginnings of their names."""

from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

from polytask.core.errors import BadValue, UnknownName
from polytask.sharing.layers import TaskModules

OWN = "own"
"""In the place of a prefix: all that belongs to one task."""


def choose(model: Any, learnable: Sequence[str], prefixes: Sequence[str] | None, stage: str) -> dict[str, nn.Parameter]:
    """The parameters that a stage changes by its tasks' losses; gradients of the others are switched off.

    Args:
        learnable: names of those that the model itself leaves free to change.
        prefixes: beginnings of names; None is all.
        stage: its name, for messages.
    """
    named = dict(model.named_parameters())
    free = _trained_by_losses(model, learnable)
    chosen = free if prefixes is None else beginning(model, free, prefixes, f"stage {stage!r}: trainable")
    if not chosen:
        found = "null" if prefixes is None else list(prefixes)
        raise BadValue(
            "trainable", found, "a beginning of names whose parameters are not all frozen", f"stage {stage!r}"
        )
    for parameter in named.values():
        parameter.requires_grad_(False)
    for name in chosen:
        named[name].requires_grad_(True)
    return {name: named[name] for name in chosen}


def beginning(model: nn.Module, names: Iterable[str], prefixes: Sequence[str], where: str) -> list[str]:
    """Those of the names that begin with a prefix, or under `own` belong to one task; UnknownName for a prefix that no
    parameter's name begins with."""
    every = [name for name, _ in model.named_parameters()]
    if OWN in prefixes:
        of_tasks = [name for name, module in model.named_modules() if isinstance(module, TaskModules)]
        of_tasks = [place for place in of_tasks if any(begins(name, place) for name in every)]
        prefixes = [*of_tasks, *(prefix for prefix in prefixes if prefix != OWN)]
    for prefix in prefixes:
        if not any(begins(name, prefix) for name in every):
            places = [name for name, _ in model.named_modules() if name and name.count(".") < 3]
            beginnings = [place for place in places if any(begins(name, place) for name in every)]
            raise UnknownName("beginning of a parameter's name", prefix, beginnings, where)
    return [name for name in names if any(begins(name, prefix) for prefix in prefixes)]


def begins(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(f"{prefix}.")


def _trained_by_losses(model: Any, learnable: Sequence[str]) -> list[str]:
    """Without the parameters of attachments that train themselves."""
    attachments = getattr(model, "attachments", {}).items()
    own = tuple(f"attachments.{kind}." for kind, attachment in attachments if attachment.trains_itself)
    return [name for name in learnable if not name.startswith(own)]
