"""Many tasks, one model: train tasks together, compare them with single-task models, predict, and show the result.

Names are loaded when they are first used, so that `import polytask` and `polytask --help` stay light.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0.dev0"

if TYPE_CHECKING:
    from polytask import boosting, testing
    from polytask.balancing import balancer
    from polytask.core.errors import PolytaskError
    from polytask.evaluation import heads
    from polytask.evaluation.trained import load
    from polytask.recipes.experts import alternate, experts
    from polytask.recipes.merging import merge
    from polytask.recipes.run import compare, train
    from polytask.sharing.attachments.contract import attachment

__all__ = [
    "PolytaskError",
    "__version__",
    "alternate",
    "attachment",
    "balancer",
    "boosting",
    "compare",
    "experts",
    "heads",
    "load",
    "merge",
    "testing",
    "train",
]

# name -> "module" or "module:attribute"
_LOADED_ON_USE = {
    "PolytaskError": "polytask.core.errors:PolytaskError",
    "alternate": "polytask.recipes.experts:alternate",
    "attachment": "polytask.sharing.attachments.contract:attachment",
    "balancer": "polytask.balancing:balancer",
    "boosting": "polytask.boosting",
    "compare": "polytask.recipes.run:compare",
    "experts": "polytask.recipes.experts:experts",
    "heads": "polytask.evaluation.heads",
    "load": "polytask.evaluation.trained:load",
    "merge": "polytask.recipes.merging:merge",
    "testing": "polytask.testing",
    "train": "polytask.recipes.run:train",
}


def __getattr__(name: str) -> Any:
    if name not in _LOADED_ON_USE:
        raise AttributeError(f"module 'polytask' has no attribute {name!r}; it has {', '.join(__all__)}")
    module, _, attribute = _LOADED_ON_USE[name].partition(":")
    loaded = importlib.import_module(module)
    value = getattr(loaded, attribute) if attribute else loaded
    globals()[name] = value  # the next access does not come here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
