"""What a training step costs with `balancer("equal")` beyond the same step in plain PyTorch.

    python benchmarks/step_overhead.py [--steps 200]

Interleaves steps of two equal models: one calls `sum(losses).backward()`, the other `balancer.backward(losses, model)`;
all else is the same. Prints JSON with the medians in milliseconds, their difference and ratio, and whether the goal is
met: at most 10 % or 0.3 ms more, whichever is larger.
"""

import argparse
import itertools
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

import polytask

TASKS = ("a", "b", "c")
BATCH, INPUTS = 256, 256


def made() -> nn.ModuleDict:
    torch.manual_seed(0)
    sizes = [INPUTS, 640, 640, 512]
    layers = [layer for n, m in itertools.pairwise(sizes) for layer in (nn.Linear(n, m), nn.ReLU())]
    return nn.ModuleDict({"trunk": nn.Sequential(*layers), **{task: nn.Linear(512, 10) for task in TASKS}})


Backward = Callable[[dict[str, Tensor]], object]


def step(model: nn.ModuleDict, optimizer: torch.optim.Optimizer, backward: Backward) -> float:
    """Milliseconds of one step on random data."""
    x, labels = torch.randn(BATCH, INPUTS), torch.randint(10, (BATCH,))
    start = time.perf_counter()
    optimizer.zero_grad()
    hidden = model["trunk"](x)
    losses = {task: nn.functional.cross_entropy(model[task](hidden), labels) for task in TASKS}
    backward(losses)
    optimizer.step()
    return (time.perf_counter() - start) * 1e3


def measured(steps: int) -> dict[str, object]:
    plain, balanced = made(), made()
    balancer = polytask.balancer("equal")
    ways: dict[str, tuple[nn.ModuleDict, torch.optim.Optimizer, Backward]] = {
        "plain": (plain, torch.optim.SGD(plain.parameters(), lr=0.01), lambda losses: sum(losses.values()).backward()),
        "equal": (
            balanced,
            torch.optim.SGD(balanced.parameters(), lr=0.01),
            lambda losses: balancer.backward(losses, balanced),
        ),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for count in range(steps + 10):
        order = list(ways) if count % 2 else list(ways)[::-1]  # neither always runs in the other's warm cache
        for name in order:
            milliseconds = step(*ways[name])
            if count >= 10:
                times[name].append(milliseconds)
    before, after = statistics.median(times["plain"]), statistics.median(times["equal"])
    return {
        "benchmark": "step_overhead",
        "plain_ms": round(before, 3),
        "equal_ms": round(after, 3),
        "more_ms": round(after - before, 3),
        "ratio": round(after / before, 4),
        "quartiles_ms": {name: [round(q, 3) for q in statistics.quantiles(values)] for name, values in times.items()},
        "goal_met": after - before <= max(0.1 * before, 0.3),
        "steps": steps,
        "threads": torch.get_num_threads(),
        "versions": {"polytask": polytask.__version__, "torch": torch.__version__, "python": platform.python_version()},
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--steps", type=int, default=200)
    result = measured(parser.parse_args().steps)
    print(json.dumps(result, indent=2))
    return 0 if result["goal_met"] else 1


if __name__ == "__main__":
    sys.exit(main())
