"""Where a result comes from: versions, commit, hardware, date."""

import datetime
import os
import platform
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from polytask import __version__


def provenance() -> dict[str, Any]:
    """What every results file carries."""
    return {
        **versions(),
        "commit": commit(),
        "hardware": hardware(),
        "date": datetime.datetime.now(datetime.UTC).isoformat("T", "seconds"),
    }


@cache
def versions() -> dict[str, str]:
    """Versions of polytask, Python and the packages that numbers depend on."""
    found = {name: metadata.version(name) for name in ("torch", "numpy", "polars", "torchmetrics")}
    return {"polytask": __version__, **found, "python": platform.python_version()}


@cache
def commit() -> str | None:
    """The commit of the checkout that polytask runs from, "+" if it has changes; None when it is installed."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git(
            "ls-files", "--error-unmatch", Path(__file__).name
        )  # installed inside somebody else's checkout: not its commit
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


@cache
def hardware() -> str:
    """Processor, cores, memory and accelerator in words."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        name = lines[0].partition(":")[2].strip() if lines else name
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 0
    parts = [name, f"{os.cpu_count()} cores", *([f"{memory / 2**30:.0f} GiB"] if memory else [])]
    if torch.cuda.is_available():
        parts.append(torch.cuda.get_device_name())
    return ", ".join(parts)
