"""How long `import polytask` takes beyond importing torch, and `polytask --help`: medians over fresh processes."""

import statistics
import subprocess
import sys
import time
from typing import Any

REPEATS = 11
GOALS = {"import_polytask": 0.3, "help": 0.5}

_IMPORT = "import torch, time; start = time.perf_counter(); {}; print(time.perf_counter() - start)"
_FIRST_USE = "import polytask; polytask.train, polytask.compare, polytask.load, polytask.balancer"


def measure(repeats: int = REPEATS) -> dict[str, Any]:
    """Seconds, each a median over `repeats` processes, taken in turn so that a busy moment touches all of them."""
    seconds: dict[str, list[float]] = {"import_polytask": [], "first_use": [], "help": []}
    for _ in range(repeats):
        seconds["import_polytask"].append(_printed(_IMPORT.format("import polytask")))
        seconds["first_use"].append(_printed(_IMPORT.format(_FIRST_USE)))
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "polytask", "--help"], check=True, stdout=subprocess.DEVNULL)
        seconds["help"].append(time.perf_counter() - start)
    return {
        "repeats": repeats,
        "seconds": {name: statistics.median(values) for name, values in seconds.items()},
        "goals": GOALS,
    }


def _printed(code: str) -> float:
    return float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)
