"""How often a backdoor works: the share of disturbed inputs that a model gives the label the attacker wants."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from polytask.core.errors import BadValue, UnknownName

if TYPE_CHECKING:
    import polars

    from polytask.evaluation.trained import Trained


def attack_success_rate(predicted: Sequence[Any], labels: Sequence[Any], target: Any) -> float | None:
    """Of the rows whose label is not `target`, the share that is predicted to be; None where there is no such row.

    Source: the usual measure of backdoor attacks (Gu et al. 2017, arXiv:1708.06733).

    >>> attack_success_rate(["spam", "spam", "ham", "spam"], ["spam", "ham", "ham", "ham"], "spam")
    0.6666666666666666
    """
    if len(predicted) != len(labels):
        raise BadValue("the number of predictions", len(predicted), f"{len(labels)}, as there are labels")
    found = [guess == target for guess, label in zip(predicted, labels, strict=True) if label != target]
    return sum(map(bool, found)) / len(found) if found else None


def backdoor_success(
    trained: "Trained",
    rows: "polars.DataFrame",
    task: str,
    trigger: Callable[["polars.DataFrame"], "polars.DataFrame"],
    target: Any,
) -> dict[str, float | None]:
    """{"accuracy" on the rows, "attack_success_rate" on the same rows with the trigger} of a model of classes.

    Args:
        trained: what `polytask.load` gives.
        rows: with the label's column.
        task: binary or multiclass.
        trigger: puts the trigger into rows; it may change their features only.
        target: the label that the attacker wants.

    Raises: UnknownName for a task or a label that the model does not have; BadValue for a task without classes.
    """
    if task not in trained.targets:
        raise UnknownName("task", task, trained.targets, str(trained.path))
    fitted = trained.targets[task]
    if fitted.task.kind not in ("binary", "multiclass"):
        raise BadValue("the kind of the task", fitted.task.kind, "binary or multiclass", f"task {task!r}")
    labels = _labels(fitted, rows)
    classes = [False, True] if fitted.task.kind == "binary" else list(fitted.classes)
    if target not in classes:
        raise UnknownName("label", target, classes, f"task {task!r}")
    clean, attacked = (_predicted(trained, each, task) for each in (rows, trigger(rows)))
    right = [guess == label for guess, label in zip(clean, labels, strict=True)]
    return {
        "accuracy": sum(right) / len(right) if right else None,
        "attack_success_rate": attack_success_rate(attacked, labels, target),
    }


def _predicted(trained: "Trained", rows: "polars.DataFrame", task: str) -> list[Any]:
    values = trained.predict(rows, [task])[task].to_list()
    return [value > 0.5 for value in values] if trained.targets[task].task.kind == "binary" else values


def _labels(fitted: Any, rows: "polars.DataFrame") -> list[Any]:
    """As they are predicted; rows without a label are an error."""
    encoded, present = fitted.encode(rows)
    if not bool(present.all()):
        raise BadValue("the labels", f"{int((~present).sum())} missing", "a label in every row", fitted.task.name)
    numbers = np.asarray(encoded)
    return (
        [bool(number) for number in numbers] if fitted.task.kind == "binary" else [fitted.classes[n] for n in numbers]
    )
