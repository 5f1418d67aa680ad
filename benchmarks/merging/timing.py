"""A command's time and the most anonymous memory that it and its children held, which the page cache is no part of."""

import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

INTERVAL = 0.02  # seconds between two looks at the memory
REST = 20  # times as long as a look took is waited, so that looking changes no time
LINES = 5  # of a failing command's output that are shown


def timed(command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None) -> dict[str, Any]:
    """{"seconds", "anonymous": bytes at the peak}; RuntimeError if the command fails."""
    with open(log, "wb") as output:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=output, stderr=output, env={**os.environ, **(environment or {})})
        tree, peak = psutil.Process(process.pid), 0
        while process.poll() is None:
            looked = time.perf_counter()
            peak = max(peak, anonymous(tree))
            time.sleep(max(INTERVAL, REST * (time.perf_counter() - looked)))
        seconds = time.perf_counter() - start
    if process.returncode:
        last = log.read_text(errors="replace").strip().splitlines()[-LINES:]
        raise RuntimeError(f"{' '.join(command)} ended with status {process.returncode}: {' / '.join(last)}")
    return {"seconds": seconds, "anonymous": peak}


def anonymous(tree: psutil.Process) -> int:
    """Bytes of all processes together, what they share counted once; those that end meanwhile count nothing."""
    try:
        processes = [tree, *tree.children(recursive=True)]
    except psutil.NoSuchProcess:
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
