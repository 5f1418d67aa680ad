"""Run and compare directories for tests: the files that training writes, with smooth seeded numbers in them."""

import json
from pathlib import Path
from typing import Any

import numpy as np

TASKS = {
    "left": {"kind": "multiclass", "metric": "accuracy", "higher_is_better": True},
    "right": {"kind": "multiclass", "metric": "accuracy", "higher_is_better": True},
    "sum": {"kind": "regression", "metric": "rmse", "higher_is_better": False},
}
FINAL = {"left": (0.22, 0.931), "right": (0.19, 0.917), "sum": (4.9, 1.62)}
"""Metric before training and after, for the single-task models."""
GAINS = {"equal": (0.004, 0.006, 0.09), "uncertainty": (0.011, 0.013, -0.07), "upgrad": (0.009, 0.012, 0.02)}
"""What each rule adds to the final metric of each task."""
PROVENANCE = {
    "polytask": "0.1.0",
    "torch": "2.13.0",
    "python": "3.11.2",
    "commit": "9c13666",
    "hardware": "2 CPU cores, 8 GiB",
    "date": "2026-03-02T10:15:00+00:00",
}
RECIPE = """version: 1
data:
  builtin: multidigits
  rows: 20000
tasks:
  left: {kind: multiclass}
  right: {kind: multiclass}
  sum: {kind: regression}   # 0 to 18
model:
  encoder: {kind: conv, channels: [32, 64]}
  sharing: hard
train:
  rule: {RULE}
  optimizer: {kind: adamw, lr: 1.0e-3}
  epochs: 5
  batch_size: 256
  seed: 0
"""


def tasks_table(count: int = 3) -> dict[str, dict[str, Any]]:
    """The three tasks of the demo, or that many assays."""
    if count == 3:
        return TASKS
    return {f"assay-{i:02d}": {"kind": "binary", "metric": "auroc", "higher_is_better": True} for i in range(count)}


def write_run(
    path: Path,
    tasks: dict[str, dict[str, Any]],
    finals: dict[str, tuple[float, float]],
    *,
    rule: str = "equal",
    seed: int = 0,
    steps: int = 400,
    finished: bool = True,
) -> dict[str, Any]:
    """A training run's directory; returns its results."""
    rng = np.random.default_rng([seed, sum(map(ord, rule)), len(tasks)])
    path.mkdir(parents=True)
    (path / "recipe.yaml").write_text(RECIPE.replace("{RULE}", rule), encoding="utf-8")
    rates = {task: float(rng.uniform(3.5, 5.5)) for task in tasks}
    events = [{"event": "start", "step": 0, "epoch": 0, "stage": "train", "seconds": 0.0}]
    valid: dict[str, dict[str, float]] = {}
    for step in range(1, steps + 1):
        progress = step / steps
        where = {"step": step, "epoch": step * 5 // (steps + 1), "stage": "train", "seconds": 0.02 * step}
        events.append({"event": "step", **where, **_step(rng, list(tasks), rule, progress)})
        if step % (steps // 16) == 0:
            valid = {task: _metrics(rng, tasks[task], finals[task], rates[task] * progress) for task in tasks}
            score = float(
                np.mean([v[tasks[t]["metric"]] * (1 if tasks[t]["higher_is_better"] else -1) for t, v in valid.items()])
            )
            losses = {task: 0.2 + 2 * float(np.exp(-rates[task] * progress)) for task in tasks}
            events.append(
                {"event": "evaluate", **where, "split": "valid", "metrics": valid, "losses": losses, "score": score}
            )
    if finished:
        events.append({"event": "stop", **where, "reason": "all steps done"})
    lines = "".join(json.dumps(event) + "\n" for event in events)
    (path / "events.jsonl").write_text(lines, encoding="utf-8")
    test = {task: _metrics(rng, tasks[task], finals[task], 9.0) for task in tasks}
    results = {
        "kind": "train",
        "version": 1,
        "tasks": tasks,
        "valid": valid,
        "test": test,
        "score": score,
        "best_step": steps,
        "steps": steps,
        "seconds": 0.02 * steps,
        "parameters": {"total": 421_642, "shared": 420_320, "private": dict.fromkeys(tasks, 440)},
        "peak_memory_mb": 412.0,
        "seed": seed,
        "rule": rule,
        "sharing": "hard",
        "provenance": PROVENANCE,
    }
    if finished:
        (path / "results.json").write_text(json.dumps(results), encoding="utf-8")
    return results


def write_compare(
    path: Path, *, seeds: int = 5, tasks: int = 3, rules: tuple[str, ...] = tuple(GAINS)
) -> dict[str, Any]:
    """A compare's directory: single-task baselines and one row a rule; returns its results."""
    table = tasks_table(tasks)
    rng = np.random.default_rng(11)
    base = FINAL if tasks == 3 else {task: (0.5, float(rng.uniform(0.72, 0.9))) for task in table}
    steps = 400
    baseline_runs = []
    for seed in range(seeds):
        by_task, valid, test = {}, {}, {}
        for task in table:
            run = f"runs/single/seed-{seed}/{task}"
            results = write_run(
                path / run, {task: table[task]}, {task: base[task]}, rule="equal", seed=seed, steps=steps
            )
            by_task[task] = run
            valid[task] = results["valid"][task][table[task]["metric"]]
            test[task] = results["test"][task][table[task]["metric"]]
        score = float(np.mean(list(valid.values())))
        run_of_row = _row_run(
            seed, valid, test, score, steps, len(table) * 8.1, 421_000 * len(table), {"runs_by_task": by_task}
        )
        baseline_runs.append(run_of_row)
    rows = [{"name": "single", "rule": "equal", "sharing": "single", "variation": {}, "runs": baseline_runs}]
    for rule in rules:
        gains = GAINS[rule] if tasks == 3 else tuple(rng.normal(0.004, 0.012, tasks))
        finals = {task: (base[task][0], base[task][1] + gain) for task, gain in zip(table, gains, strict=True)}
        runs = []
        for seed in range(seeds):
            run = f"runs/{rule}/seed-{seed}"
            results = write_run(path / run, table, finals, rule=rule, seed=seed, steps=steps)
            valid = {task: results["valid"][task][table[task]["metric"]] for task in table}
            test = {task: results["test"][task][table[task]["metric"]] for task in table}
            seconds = {"equal": 8.4, "uncertainty": 8.6, "upgrad": 13.9}[rule] + 0.1 * seed
            runs.append(_row_run(seed, valid, test, results["score"], steps, seconds, 421_642, {"run": run}))
        rows.append({"name": rule, "rule": rule, "sharing": "hard", "variation": {}, "runs": runs})
    results = {
        "kind": "compare",
        "tasks": table,
        "baseline": "single",
        "budget": {"steps": steps, "learning_rates": [3e-4, 1e-3, 3e-3], "seeds": list(range(seeds))},
        "rows": rows,
        "provenance": PROVENANCE,
    }
    (path / "results.json").write_text(json.dumps(results), encoding="utf-8")
    return results


def _row_run(
    seed: int,
    valid: dict[str, float],
    test: dict[str, float],
    score: float,
    steps: int,
    seconds: float,
    parameters: int,
    where: dict[str, Any],
) -> dict[str, Any]:
    others = [{"learning_rate": rate, "score": score - 0.02} for rate in (3e-4, 3e-3)]
    return {
        "seed": seed,
        "learning_rate": 1e-3,
        "valid": valid,
        "test": test,
        "score": score,
        "steps": steps,
        "seconds": seconds,
        "peak_memory_mb": 412.0 + seed,
        "parameters": parameters,
        "all_runs": others,
        **where,
    }


def _metrics(
    rng: np.random.Generator, task: dict[str, Any], final: tuple[float, float], decay: float
) -> dict[str, float]:
    start, end = final
    noise = float(rng.normal(0, 0.0025 * (1 if task["higher_is_better"] else 8)))
    value = end + (start - end) * float(np.exp(-decay)) + noise
    other = "log_loss" if task["higher_is_better"] else "mae"
    return {task["metric"]: value, other: 2.2 * float(np.exp(-decay)) + 0.2}


def _step(rng: np.random.Generator, tasks: list[str], rule: str, progress: float) -> dict[str, Any]:
    losses = {task: 0.2 + 2.1 * float(np.exp(-4.5 * progress)) * float(rng.lognormal(0, 0.08)) for task in tasks}
    if rule == "uncertainty":
        weights = {task: float(np.exp((0.5 + 0.35 * i) * progress * 2)) / 2 for i, task in enumerate(tasks)}
    elif rule == "upgrad":
        weights = {
            task: float(abs(rng.normal(1 / len(tasks) * (1 + 0.2 * i * progress), 0.03)))
            for i, task in enumerate(tasks)
        }
    else:
        weights = dict.fromkeys(tasks, 1.0)
    event: dict[str, Any] = {"losses": losses, "weights": weights, "learning_rate": 1e-3}
    if len(tasks) > 1:
        event["cosines"] = {"tasks": tasks, "values": _cosines(rng, len(tasks), progress)}
    return event


def _cosines(rng: np.random.Generator, count: int, progress: float) -> list[list[float]]:
    values = np.eye(count)
    for i in range(count):
        for j in range(i + 1, count):
            centre = 0.35 * np.exp(-3 * progress) + 0.1 * np.cos(i + 2 * j) - 0.08
            values[i, j] = values[j, i] = float(np.clip(rng.normal(centre, 0.08), -1, 1))
    return values.tolist()
