"""The largest memory of a run."""

import resource
import sys
from contextlib import suppress
from pathlib import Path

import torch

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def start_measuring(device: torch.device) -> None:
    """Forgets the peak so far, so that runs in one process are measured apart (on Linux and CUDA)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif _RESET.exists():
        with suppress(OSError):  # without the right to reset, the peak is the process's
            _RESET.write_text("5")


def peak_mb(device: torch.device) -> float:
    """MiB at the peak: of the accelerator, else resident memory of this process (with interpreter and libraries)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if _STATUS.exists():
        lines = [line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM")]
        if lines:
            return float(lines[0].split()[1]) / 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
