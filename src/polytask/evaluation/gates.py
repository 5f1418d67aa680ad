"""What a model's gates and experts do on a split: who uses whom, how evenly, and which experts are in bad health."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from polytask.evaluation.scores import batches_of, device_of, evaluation_mode
from polytask.sharing.stems import named_stem
from polytask.sharing.tape import Tape, listen
from polytask.tasks.mixture import Split
from polytask.tasks.target import Target

COLLAPSED = 0.9
"""An expert is called collapsed when more than this share of its activations is zero (HoME, arXiv:2408.05430)."""

CAPTURED = 0.9
"""An expert of several tasks is called captured when one task gives it this share of the weight it gets from all."""

IGNORED = 0.1
"""A task is said to ignore its own experts when they get less than this share of what equal weights would give."""


def gate_report(
    model: nn.Module, splits: Mapping[str, Split], targets: Mapping[str, Target], batch_size: int
) -> dict[str, Any]:
    """{place in the model: what its gates and experts did, and what is wrong}; empty for a model without gates.

    A place has `experts` (their names), `use` (task -> the mean weight of each; null where its gate cannot choose it),
    `entropy` (task -> of its mean row's weights, as a share of the largest there can be), `zeros` (expert -> the share
    of its activations that is zero) and `anomalies` (sentences).
    """
    tally = _Tally()
    with evaluation_mode(model), torch.inference_mode():
        for batch in batches_of(splits, batch_size, device_of(model)):
            tasks = [task for task in targets if task in batch.labels]
            with listen() as tape:
                model(batch.inputs, tasks, **named_stem(model, batch.source))
            if not tape.gates:
                return {}
            tally.see(tape)
    return {place: tally.place(place, list(targets)) for place in tally.places()}


class _Tally:
    """Sums over rows."""

    def __init__(self) -> None:
        self._use: dict[tuple[str, str], dict[str, float]] = {}
        self._entropy: dict[tuple[str, str], float] = {}
        self._rows: dict[tuple[str, str], int] = {}
        self._zeros: dict[tuple[str, str], tuple[int, int]] = {}

    def see(self, tape: Tape) -> None:
        for key, weights in tape.gates.items():
            use = self._use.setdefault(key, dict.fromkeys(weights, 0.0))
            for expert, column in weights.items():
                use[expert] += float(column.double().sum())
            every = torch.stack(list(weights.values()), dim=1).double()
            self._entropy[key] = self._entropy.get(key, 0.0) + float(-torch.xlogy(every, every).sum())
            self._rows[key] = self._rows.get(key, 0) + len(every)
        for key, output in tape.experts.items():
            zeros, total = self._zeros.get(key, (0, 0))
            self._zeros[key] = (zeros + _zeros(output), total + output.numel())

    def places(self) -> list[str]:
        return list(dict.fromkeys(place for place, _ in self._use))

    def place(self, place: str, tasks: list[str]) -> dict[str, Any]:
        use = {task: self._mean(place, task) for task in tasks if (place, task) in self._use}
        experts = list(dict.fromkeys(expert for weights in use.values() for expert in weights))
        most = {task: torch.tensor(len(weights), dtype=torch.float64).log().item() for task, weights in use.items()}
        entropy = {
            task: self._entropy[place, task] / self._rows[place, task] / most[task] if most[task] else 1.0
            for task in use
        }
        zeros = {
            expert: found / total
            for (at, expert), (found, total) in self._zeros.items()
            if at == place and expert in experts
        }
        return {
            "experts": experts,
            "use": {task: [weights.get(expert) for expert in experts] for task, weights in use.items()},
            "entropy": entropy,
            "zeros": zeros,
            "anomalies": anomalies(use, zeros),
        }

    def _mean(self, place: str, task: str) -> dict[str, float]:
        rows = self._rows[place, task]
        return {expert: total / rows for expert, total in self._use[place, task].items()}


def anomalies(use: Mapping[str, Mapping[str, float]], zeros: Mapping[str, float]) -> list[str]:
    """The three that HoME's authors name, as sentences: collapsed, captured (degraded), ignored (underfitting)."""
    found = [
        f"collapsed: {share:.0%} of the activations of {expert} are zero"
        for expert, share in zeros.items()
        if share > COLLAPSED
    ]
    for expert in dict.fromkeys(expert for weights in use.values() for expert in weights):
        given = {task: weights[expert] for task, weights in use.items() if expert in weights}
        total, task = sum(given.values()), max(given, key=given.__getitem__)
        is_shared = not any(_owns(other, expert) for other in use)
        if is_shared and len(given) > 1 and total > 0 and given[task] / total > CAPTURED:
            found.append(
                f"captured: {task} gives {expert} {given[task] / total:.0%} of the weight it gets from all tasks"
            )
    for task, weights in use.items():
        own = [expert for expert in weights if _owns(task, expert)]
        share, even = sum(weights[expert] for expert in own), len(own) / len(weights)
        if own and share < IGNORED * even:
            found.append(
                f"ignored: {task} gives its own experts {share:.1%} of its weight, where equal weights give {even:.0%}"
            )
    return found


def _owns(task: str, expert: str) -> bool:
    """Whether the name is that of one of the task's own experts, numbered after it (see sharing.tape.numbered)."""
    owner, _, number = expert.rpartition(" ")
    return owner == task and number.isdigit()


def _zeros(output: Tensor) -> int:
    return int(output.numel() - output.count_nonzero())
