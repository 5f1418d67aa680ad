"""Trains runs in processes that are killed with SIGKILL, each resuming the one before; a run's last one finishes it.

python killed.py CONFIG, with CONFIG a JSON file of [{"recipe", "data_dir", "out", "kills": [...]}, ...]. A kill is
{"call": n}, at the n-th call that changes the disk, or {"seconds": s}, whatever the process does then. Each process is
forked from one that has the imports done. Prints how many were killed, for each run.
"""

import json
import os
import shutil
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import accelerate  # noqa: F401 (loaded here once, as are the next ones)
import polars  # noqa: F401
import torch
import torch._dynamo
import torchmetrics.functional  # noqa: F401

import polytask.recipes.run

CALLS = ((os, "fsync"), (os, "replace"), (os, "symlink"), (os, "truncate"), (os, "mkdir"), (shutil, "rmtree"))


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def arm(moment: dict[str, Any]) -> None:
    if "seconds" in moment:
        timer = threading.Timer(moment["seconds"], kill)
        timer.daemon = True
        timer.start()
        return
    left = [moment["call"]]

    def counted(function: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                kill()
            return function(*arguments, **options)

        return call

    for module, name in CALLS:
        setattr(module, name, counted(getattr(module, name)))


def train(run: dict[str, Any]) -> int:
    died = 0
    for moment in [*run["kills"], None]:
        child = os.fork()
        if child == 0:
            if moment is not None:
                arm(moment)
            polytask.recipes.run.train(run["recipe"], out=run["out"], data_dir=run["data_dir"], resume=True)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            assert os.WTERMSIG(status) == signal.SIGKILL, status
            died += 1
        elif os.WEXITSTATUS(status):
            sys.exit("a process failed")
    return died


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps([train(run) for run in json.loads(Path(sys.argv[1]).read_text())]))
