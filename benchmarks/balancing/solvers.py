"""What a rule on the Gram matrix takes beyond the engine: milliseconds a call, at 8 and at 100 tasks."""

import statistics
import time
from typing import Any

import torch
from torch import Tensor

from polytask.core.names import RULES
from polytask.core.rules import find, rule_names
from polytask.core.state import Rule

LIMITS_MS = {8: 0.3, 100: 5.0}
OWN_LIMITS_MS = {("upgrad", 100): 20.0}
INNER_STEPS = {"sdmgrad": 20}  # a rule that takes a fixed number of steps is judged by one of them
_CALLS = 15


def grams(tasks: int) -> dict[str, Tensor]:
    """Tasks that hardly conflict, that do, whose lengths differ by 1e4, and in fewer dimensions than tasks."""
    noise = torch.Generator().manual_seed(tasks)
    wide = torch.randn(tasks, 1000, dtype=torch.float64, generator=noise)
    narrow = torch.randn(tasks, tasks // 2, dtype=torch.float64, generator=noise)
    lengths = torch.logspace(-2, 2, tasks, dtype=torch.float64)[:, None]
    kinds = {
        "wide": wide,
        "conflicting": wide - 0.9 * wide.mean(0),
        "lengths": (wide - 0.9 * wide.mean(0)) * lengths,
        "few dimensions": narrow,
    }
    return {kind: rows @ rows.T for kind, rows in kinds.items()}


def gram_rules() -> list[str]:
    """Those for training."""
    names = [name for name in rule_names() if not RULES.get(name, "").startswith("polytask.merging.")]
    seen = {"gram", "cross_gram"}
    return [name for name in names if seen & set(find(name).needs) and find(name).returns == "weights"]


def measure() -> dict[str, Any]:
    """Rule -> tasks -> the worst kind's median, with its kind and whether the limit is kept."""
    return {name: {str(tasks): _worst(name, tasks) for tasks in LIMITS_MS} for name in gram_rules()}


def _worst(name: str, tasks: int) -> dict[str, Any]:
    found = {kind: _median(name, tasks, gram) for kind, gram in grams(tasks).items()}
    kind = max(found, key=lambda kind: found[kind])
    limit = OWN_LIMITS_MS.get((name, tasks), LIMITS_MS[tasks])
    return {"ms": round(found[kind], 3), "kind": kind, "limit_ms": limit, "met": found[kind] <= limit}


def _median(name: str, tasks: int, gram: Tensor) -> float:
    rule = Rule(name, [str(i) for i in range(tasks)])
    given = {"gram": gram, "cross_gram": gram, "losses": torch.ones(tasks, dtype=torch.float64)}
    inputs = [given[need] for need in rule.spec.needs]
    times = []
    for _ in range(_CALLS):
        before = time.perf_counter()
        rule(rule.tasks, *inputs)
        times.append(1e3 * (time.perf_counter() - before))
        rule.advance()
    return statistics.median(times[3:]) / INNER_STEPS.get(name, 1)
