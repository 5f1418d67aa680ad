"""Groups of tasks, as an architecture's options name them."""

from collections.abc import Mapping, Sequence

from polytask.core.errors import BadValue, UnknownName


def group_of(
    groups: Mapping[str, Sequence[str]] | None, tasks: Sequence[str], kind: str, *, alone: bool = False
) -> dict[str, str]:
    """task -> its group; None is one group of all tasks.

    Args:
        alone: a task in no group is one by itself, under its own name.

    Raises:
        BadValue: a task in two groups.
        UnknownName: a task in none, unless it may be alone.
    """
    if groups is None:
        return dict.fromkeys(tasks, "all tasks")
    found: dict[str, str] = {}
    for group, members in groups.items():
        for task in members:
            if task not in tasks:
                continue  # a single-task baseline, or a part of the tasks, keeps the others' groups
            if task in found:
                raise BadValue(f"sharing {kind!r}: the groups of task {task!r}", [found[task], group], "one group")
            found[task] = group
    for task in tasks:
        if task not in found and not alone:
            named = [name for members in groups.values() for name in members]
            raise UnknownName("task", task, named, f"groups of {kind}")
        found.setdefault(task, task)
    return found
