"""What a step of the whole trainer costs beside the same loop written by hand in plain PyTorch.

Same model, start, rows in the same order, losses and optimiser; at the end both have the same weights, which is
checked. A step's time is (time of 3n steps - time of n steps) / 2n, so the start, the evaluation and the checkpoint at
the end cancel and all that the trainer does in between counts: picking rows, masks, random state, events.
"""

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from polytask.core.noise import Noise
from polytask.recipes.reading import read_recipe
from polytask.recipes.run import make_job
from polytask.training.devices import Devices
from polytask.training.job import Job
from polytask.training.loop import fit

ROWS, COLUMNS, BATCH = 20_000, 128, 256
STEPS, ROUNDS = 200, 9
GOAL = {"share": 0.10, "seconds": 0.0003}


def measure(steps: int = STEPS, rounds: int = ROUNDS, threads: int = 1) -> dict[str, Any]:
    """Median seconds of a step, by the trainer and by hand, taken in turn."""
    by_trainer, by_hand = [], []
    for number in range(rounds):
        # A busy moment should touch both, and neither always comes first.
        pair = [(by_trainer, _trainer), (by_hand, _hand)]
        for seconds, run in pair if number % 2 == 0 else reversed(pair):
            few, many = run(_job(steps, threads)), run(_job(3 * steps, threads))
            seconds.append((many[0] - few[0]) / (2 * steps))
    difference = _largest_difference(_trainer(_job(steps, threads))[1], _hand(_job(steps, threads))[1])
    trainer, hand = statistics.median(by_trainer), statistics.median(by_hand)
    return {
        "model": f"mlp {COLUMNS}-256-128, two binary tasks, {BATCH} rows a step, adamw, {threads} thread",
        "steps": steps,
        "rounds": rounds,
        "seconds": {"trainer": trainer, "by_hand": hand},
        "goal": GOAL,
        "largest_difference_of_weights": difference,
    }


def _job(steps: int, threads: int) -> Job:
    rows = Noise(0, "rows").normal(ROWS * COLUMNS).reshape(ROWS, COLUMNS).astype(np.float32)
    data = {"x": rows, "first": rows[:, 0] > 0, "second": rows[:, 0] + rows[:, 1] > 0}
    recipe = {
        "version": 1,
        "data": {
            "features": {"x": {"kind": "vector", "standardise": False}},
            "split": {"fractions": [0.9, 0.05, 0.05]},
        },
        "tasks": {"first": "binary", "second": "binary"},
        "model": {"encoder": {"kind": "mlp", "hidden_sizes": [256, 128]}},
        "train": {"steps": steps, "batch_size": BATCH, "threads": threads, "evaluate_every": 10 * steps},
    }
    return make_job(read_recipe(recipe), data={"data": data})


def _trainer(job: Job) -> tuple[float, dict[str, torch.Tensor]]:
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        fit(job, Path(folder) / "run")
        seconds = time.perf_counter() - start
        return seconds, _saved(Path(folder) / "run")


def _saved(run: Path) -> dict[str, torch.Tensor]:
    from polytask.checkpoints import pointed, read_checkpoint

    last = pointed(run, "best")
    assert last is not None
    return dict(read_checkpoint(last).tensors())


def _hand(job: Job) -> tuple[float, dict[str, torch.Tensor]]:
    """The loop as one writes it by hand, knowing that there is one source and that no label is missing."""
    stage = job.stages[0]
    with Devices(job.run).settings(None):
        start = time.perf_counter()
        model = job.build()
        _loop(model, job, stage.steps or 0, stage.batch_size, stage.optimizer.lr)
        return time.perf_counter() - start, model.state_dict()


def _loop(model: nn.Module, job: Job, steps: int, batch_size: int, rate: float) -> None:
    train = job.data.sources["data"].splits["train"]
    (x,) = train.inputs.values()
    key = next(iter(train.inputs))
    labels = {task: train.labels[task].float() for task in job.tasks}
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    model.train()
    # The trainer's own order of rows: the check at the end fails if this is not it any more.
    seed = Noise(job.run.seed, "stage", 0, "mixture").torch_seed()
    done = epoch = 0
    while done < steps:
        order = torch.from_numpy(Noise(seed, "order", "data", epoch).permutation(len(x)))
        for rows in order.split(batch_size):
            outputs = model({key: x[rows]})
            losses = [functional.binary_cross_entropy_with_logits(outputs[t], y[rows]) for t, y in labels.items()]
            optimizer.zero_grad()
            torch.stack(losses).sum().backward()
            optimizer.step()
            done += 1
            if done == steps:
                return
        epoch += 1


def _largest_difference(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    """Both loops took the same steps, or the times say nothing."""
    largest = max(float((first[name] - second[name]).abs().max()) for name in first)
    if sorted(first) != sorted(second) or largest > 1e-3:
        raise AssertionError(f"the two loops ended with weights {largest:.3g} apart: they did not take the same steps")
    return largest
