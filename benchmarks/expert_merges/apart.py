"""One merge in a process of its own, forked from one that has imported torch and polytask and nothing else."""

import multiprocessing
import os
import time
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil

from benchmarks.merging.timing import INTERVAL, anonymous, anonymous_of
from polytask.core.errors import PolytaskError


class MergeFailed(Exception):
    """The merge ended with an error of polytask's, which this one tells."""


def merged_apart(plan: Mapping[str, Any], out: Path, data_dir: Path | None = None) -> dict[str, float]:
    """Writes the merge; {"seconds", "anonymous": bytes at the peak beyond those of the start}.

    Args:
        plan, out, data_dir: as `polytask.merge` takes them.

    Raises:
        MergeFailed: with polytask's own line.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["polytask.recipes.merging"])
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_merge, args=(dict(plan), str(out), data_dir, sender))
    process.start()
    sender.close()
    tree, peak = psutil.Process(process.pid), 0
    while process.is_alive():
        peak = max(peak, anonymous(tree))
        time.sleep(INTERVAL)
    process.join()
    if not receiver.poll():
        raise RuntimeError(f"a merge ended with status {process.exitcode} and told nothing")
    found = receiver.recv()
    if "error" in found:
        raise MergeFailed(found["error"])
    return {"seconds": found["seconds"], "anonymous": max(peak - found["before"], 0)}


def _merge(plan: Mapping[str, Any], out: str, data_dir: Path | None, sender: Connection) -> None:
    import polytask

    before, start = anonymous_of(os.getpid()), time.perf_counter()
    try:
        polytask.merge(plan, out=out, data_dir=data_dir)
    except PolytaskError as error:
        sender.send({"error": str(error)})
    else:
        sender.send({"seconds": time.perf_counter() - start, "before": before})
