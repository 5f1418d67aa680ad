"""A command's time and the most anonymous memory that it and its children held, which the page cache is no part of."""

import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

INTERVAL = 0.02  # seconds between two looks at the memory
LINES = 5  # of a failing command's output that are shown


def timed(
    command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None, *, looks: bool = True
) -> dict[str, Any]:
    """{"seconds", "anonymous": bytes at the peak}; RuntimeError if the command fails.

    Args:
        looks: whether to look at the memory meanwhile, which takes next to no time of one process, but what processes
            share is counted page by page. Without looks "anonymous" is 0.
    """
    with open(log, "wb") as output:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=output, stderr=output, env={**os.environ, **(environment or {})})
        tree, peak = psutil.Process(process.pid), 0
        while looks and process.poll() is None:
            peak = max(peak, anonymous(tree))
            time.sleep(INTERVAL)
        process.wait()
        seconds = time.perf_counter() - start
    if process.returncode:
        last = log.read_text(errors="replace").strip().splitlines()[-LINES:]
        raise RuntimeError(f"{' '.join(command)} ended with status {process.returncode}: {' / '.join(last)}")
    return {"seconds": seconds, "anonymous": peak}


def anonymous(tree: psutil.Process) -> int:
    """Bytes of a process and its children, what they share counted once; those that end meanwhile count nothing."""
    try:
        children = Path(f"/proc/{tree.pid}/task/{tree.pid}/children").read_text().split()  # which psutil looks for long
        processes = [tree, *(tree.children(recursive=True) if children else [])]
    except (OSError, psutil.NoSuchProcess):
        return 0
    return sum(anonymous_of(process.pid, alone=len(processes) == 1) for process in processes)


def anonymous_of(number: int, *, alone: bool = True) -> int:
    """Bytes of one process, its share of those that it has in common with its forks; 0 where it has ended.

    Args:    alone: without forks all is its own, which the system knows without counting pages.
    """
    file, field = ("status", "RssAnon:") if alone else ("smaps_rollup", "Pss_Anon:")
    try:
        lines = Path(f"/proc/{number}/{file}").read_text().splitlines()
    except OSError:
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith(field))
