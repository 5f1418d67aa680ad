"""All that `make bench-balancing` measures, in one run; the other libraries in an environment of their own."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.balancing import fidelity, peers, solvers
from benchmarks.balancing.models import PROBLEMS
from polytask.core.errors import Inconsistent

SECONDS = 60.0  # of interleaved steps for each model
PLACE = peers.ROOT / "build" / "bench" / "balancing-peers"


def measure(*, seconds: float = SECONDS, place: Path = PLACE, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Steps, memory, losses, solvers, agreement and fidelity."""

    def there(*arguments: str) -> Any:
        say(f"  balancing: {' '.join(arguments)}")
        return json.loads(peers.measured_there(place, *arguments))

    steps = {name: there("steps", name, str(seconds)) for name in PROBLEMS}
    slower = fallbacks(steps)
    if slower:
        raise Inconsistent(f"a module took the exact route where another is faster: {'; '.join(slower)}")
    return {
        "titles": {name: problem.title for name, problem in PROBLEMS.items()},
        "peers": dict(zip(peers.PEERS, peers.PEERS.values(), strict=True)),
        "peers_missing": {peer: why for peer, why in there("peers").items() if why},
        "steps": steps,
        "memory_mb": there("memory"),
        "losses": there("losses", str(seconds / 2)),
        "agreement": there("agreement"),
        "solvers": solvers.measure(),
        "fidelity": fidelity.measure(),
    }


# The kinds of modules whose route is known, and where it is the faster one: model -> module -> route
_FASTER = {
    "mlp8": {f"trunk.{i}": "layerwise" for i in (2, 4, 6)},
    "mlp40": {f"trunk.{i}": "layerwise" for i in (2, 4, 6)},
}


def fallbacks(steps: dict[str, Any]) -> list[str]:
    """Modules that did not take the faster of their routes."""
    return [
        f"{model}: {module} took {steps[model]['routes']['auto'].get(module)!r}"
        for model, wanted in _FASTER.items()
        for module, route in wanted.items()
        if steps[model]["routes"]["auto"].get(module) != route
    ]
