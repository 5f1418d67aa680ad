"""Several tasks as one for a rule: their losses are averaged, and the rule sees clusters."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from polytask.balancing import distribution
from polytask.balancing.interval_clusters import interval_clusters
from polytask.balancing.session import Forward
from polytask.balancing.step_losses import check_losses
from polytask.core.errors import BadValue, MissingInput, NotFinite, UnknownName


class Clusters:
    """Which tasks are one to the rule.

    The loss of a cluster is the mean of its present tasks' losses, each counted as its labels are, times its priority
    where there are priorities; the cluster's own priority is the mean over all its tasks.

    Attributes:
        members: cluster -> its tasks.
    """

    def __init__(self, members: Mapping[str, Sequence[str]], priority: Mapping[str, float]) -> None:
        self.members = {cluster: list(tasks) for cluster, tasks in members.items()}
        self._cluster = {task: cluster for cluster, tasks in members.items() for task in tasks}
        self._priority = {task: priority.get(task, 1.0) for task in self._cluster}
        for task in priority:
            if task not in self._cluster:
                raise UnknownName("task", task, self._cluster, "priority")

    @property
    def priority(self) -> dict[str, float]:
        return {
            cluster: sum(self._priority[task] for task in tasks) / len(tasks) for cluster, tasks in self.members.items()
        }

    def joined(
        self, losses: Mapping[str, Tensor], counts: Mapping[str, float] | None, step: int
    ) -> tuple[dict[str, Tensor], dict[str, float]]:
        """(cluster -> loss, cluster -> count), for `backward`; without counts every task counts 1."""
        check_losses(losses, counts)
        present: dict[str, dict[str, float]] = {}
        for task in losses:
            if task not in self._cluster:
                raise UnknownName("task", task, self._cluster, "clusters")
            count = 1.0 if counts is None else float(counts[task])
            # a task without a label on this process keeps its graph: another process may have one
            if count > 0 or distribution.active():
                present.setdefault(self._cluster[task], {})[task] = count * self._priority[task]
        _refuse_infinite({task: losses[task] for tasks in present.values() for task in tasks}, step)
        total = {cluster: sum(parts.values()) for cluster, parts in present.items()}
        means = {cluster: _mean([losses[t] for t in parts], parts.values()) for cluster, parts in present.items()}
        return means, total

    def joining(self, forward: Forward | None, counts: Mapping[str, float] | None, step: int) -> Forward | None:
        """`forward` with the clusters' losses; of another batch than the step's, every task counts 1."""
        if forward is None:
            return None

        def joined(parameters: Mapping[str, Tensor] | None = None, batch: int | str = 0) -> Mapping[str, Tensor]:
            return self.joined(forward(parameters, batch), counts if batch == 0 else None, step)[0]

        return joined


def clusters_of(given: Mapping[str, Any], tasks: Sequence[str] | None) -> dict[str, list[str]]:
    """cluster -> its tasks, from {cluster: tasks} or {"kind": ..., "number": ..., "values": ...}.

    A task that no cluster names is one by itself. Clusters are in the order of their first tasks.
    """
    if not isinstance(given, Mapping) or not given:
        raise BadValue("clusters", given, "{cluster: [tasks]} or {kind: index, number: 5}")
    if isinstance(given.get("kind"), str):
        return _found(given, tasks)
    members: dict[str, list[str]] = {}
    named: dict[str, str] = {}
    for cluster, own in given.items():
        if not isinstance(own, list | tuple) or not own or not all(isinstance(task, str) for task in own):
            raise BadValue(f"cluster {cluster!r}", own, "a list of tasks", "clusters")
        members[str(cluster)] = list(own)
        for task in own:
            if task in named:
                raise BadValue(f"task {task!r}", f"in {named[task]} and in {cluster}", "one cluster", "clusters")
            if tasks is not None and task not in tasks:
                raise UnknownName("task", task, tasks, f"clusters, {cluster}")
            named[task] = str(cluster)
    order = list(named) if tasks is None else list(tasks)
    for task in order:
        if task in members and named.get(task) != task:
            raise BadValue(f"cluster {task!r}", members[task], "a name that no other task has", "clusters")
        named.setdefault(task, task)
    return {cluster: members.get(cluster, [cluster]) for cluster in dict.fromkeys(named[task] for task in order)}


def _found(given: Mapping[str, Any], tasks: Sequence[str] | None) -> dict[str, list[str]]:
    options = ("kind", "number", "values")
    for key in given:
        if key not in options:
            raise UnknownName("key", key, options, "clusters")
    if tasks is None:
        raise MissingInput(f"clusters by {given['kind']} need tasks=[...], every task in order")
    if given.get("number") is None:
        raise MissingInput("clusters: number is missing, how many there are to be")
    return interval_clusters(tasks, kind=given["kind"], number=given["number"], values=given.get("values"))


def _mean(losses: Sequence[Tensor], shares: Any) -> Tensor:
    if len(losses) == 1:
        return losses[0]
    weights = torch.tensor(list(shares), dtype=torch.float64)
    total = float(weights.sum())
    stacked = torch.stack(list(losses))
    return stacked @ (weights / (total if total > 0 else 1.0)).to(stacked)


def _refuse_infinite(losses: Mapping[str, Tensor], step: int) -> None:
    """NotFinite naming the task; over several processes the balancer names the cluster, on all of them."""
    if not losses or distribution.active():
        return
    values = torch.stack([loss.detach() for loss in losses.values()])
    finite = values.isfinite()
    if not bool(finite.all()):
        worst = int(finite.int().argmin())
        raise NotFinite(f"the loss of task {list(losses)[worst]!r} is {values[worst].item()} at step {step}")
