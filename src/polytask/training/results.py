"""What RUN/results.json holds."""

from collections.abc import Mapping
from typing import Any

import torch

from polytask.sharing import MultiTaskModel, describe
from polytask.tasks.metrics import METRICS
from polytask.training.job import Job
from polytask.training.memory import peak_mb
from polytask.training.provenance import provenance
from polytask.training.snapshot import Progress


def run_results(
    job: Job,
    model: MultiTaskModel,
    progress: Progress,
    test: Mapping[str, Any],
    gates: Mapping[str, Any],
    device: torch.device,
    by_source: Mapping[str, Any],
) -> dict[str, Any]:
    """The results of a run that is done.

    Args:
        test: task -> metric -> value on the test split; a task whose source has none is left out.
        gates: what the model's gates and experts do on the validation split; empty where there are none.
        by_source: task -> source -> metric -> value on the test split, of tasks that several sources have labels of.
    """
    tasks = {
        task: {
            "kind": target.task.kind,
            "metric": target.task.metric,
            "higher_is_better": METRICS[target.task.metric].higher_is_better,
            "role": target.task.role,
            **({"held_out": list(target.task.held_out)} if target.task.held_out else {}),
        }
        for task, target in job.targets.items()
    }
    counts = describe(model)
    return {
        "kind": "train",
        "version": 1,
        "tasks": tasks,
        "valid": progress.best_valid,
        "test": dict(test),
        **({"test_by_source": dict(by_source)} if by_source else {}),
        "score": progress.best_score,
        "best_step": progress.best_step,
        "steps": progress.step,
        "seconds": progress.seconds,
        "parameters": {"total": counts["parameters"], "shared": counts["shared"], "private": counts["private"]},
        "peak_memory_mb": peak_mb(device),
        "seed": job.run.seed,
        "rule": job.stages[-1].rule.kind,
        "sharing": job.model.sharing.kind,
        **({"conditioning": counts["conditioning"]} if "conditioning" in counts else {}),
        **({"gates": dict(gates)} if gates else {}),
        "provenance": provenance(),
    }
