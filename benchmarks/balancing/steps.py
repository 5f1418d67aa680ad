"""Times the sides' steps in turn, and the memory of each; run in the peers' environment, prints JSON.

python -m benchmarks.balancing.steps steps MODEL SECONDS | losses SECONDS | memory | agreement | peers
"""

import json
import os
import resource
import statistics
import sys
import time
from collections.abc import Mapping
from typing import Any

import torch

from benchmarks.balancing import agreement, peers, sides
from benchmarks.balancing.models import PROBLEMS, Problem

LEAST, MOST = 10, 40  # rounds, a multiple of the interval


def timed(problem: Problem, chosen: Mapping[str, sides.Side], seconds: float) -> dict[str, Any]:
    """Side -> milliseconds of each step, taken in turn so that the machine's moods meet all alike, and the routes."""
    steppers = {name: sides.Stepper(problem, side) for name, side in chosen.items()}
    times: dict[str, list[float]] = {name: [] for name in steppers}
    rounds, start = 0, time.perf_counter()
    for stepper in steppers.values():  # the first step allocates
        stepper()
    while rounds < LEAST or rounds % sides.INTERVAL or (rounds < MOST and time.perf_counter() - start < seconds):
        order = list(steppers) if rounds % 2 else list(steppers)[::-1]
        for name in order:
            before = time.perf_counter()
            steppers[name]()
            times[name].append(1e3 * (time.perf_counter() - before))
        rounds += 1
    routes = {name: getattr(stepper.report, "route", {}) for name, stepper in steppers.items()}
    return {"milliseconds": times, "rounds": rounds, "routes": {name: route for name, route in routes.items() if route}}


def summary(found: Mapping[str, Any]) -> dict[str, Any]:
    """Medians and quartiles; the interval's is a mean, since its steps differ."""
    times = found["milliseconds"]
    unit = statistics.median(times["ew"])
    lines = {}
    for name, values in times.items():
        low, middle, high = statistics.quantiles(values, n=4)
        middle = statistics.mean(values) if name == "interval" else middle
        ratios = [v / e for v, e in zip(values, times["ew"], strict=True)]
        lines[name] = {
            "ms": round(middle, 3),
            "quartiles_ms": [round(low, 3), round(high, 3)],
            "ratio": round(middle / unit, 3),
            "ratio_by_round": round(statistics.mean(ratios) if name == "interval" else statistics.median(ratios), 3),
        }
    return {"rounds": found["rounds"], "routes": found["routes"], "sides": lines}


def memory(problem: Problem, name: str, side: sides.Side) -> float:
    """Peak MB of three steps of one side in a process of its own, forked so that imports cost nothing."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            stepper = sides.Stepper(problem, side)
            for _ in range(3):
                stepper()
            os.write(write, str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024).encode())
            status = 0
        finally:
            os._exit(status)
    os.close(write)
    with os.fdopen(read) as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    return round(float(text), 1) if text else float("nan")


def main(arguments: list[str]) -> None:
    what, *rest = arguments
    have_torchjd = peers.why_not("torchjd") is None
    have_libmtl = peers.why_not("LibMTL") is None
    theirs = {**(sides.TORCHJD if have_torchjd else {}), **(sides.LIBMTL if have_libmtl else {})}
    every = {**sides.PLAIN, **sides.ENGINES, **theirs}
    if what == "steps":
        found: Any = summary(timed(PROBLEMS[rest[0]], every, float(rest[1])))
    elif what == "losses":
        found = summary(timed(PROBLEMS["mlp8"], {"ew": sides.PLAIN["ew"], **sides.LOSSES}, float(rest[0])))
    elif what == "memory":
        torch.set_num_threads(1)  # a thread pool does not survive a fork
        found = {
            key: {name: memory(problem, name, side) for name, side in every.items()}
            for key, problem in PROBLEMS.items()
        }
    elif what == "agreement":
        found = {
            "torchjd": agreement.compared() if have_torchjd else {},
            "LibMTL": agreement.compared_with_libmtl() if have_libmtl else {},
        }
    else:
        found = {peer: peers.why_not(peer) for peer in peers.PEERS}
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1:])
