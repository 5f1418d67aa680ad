"""Which settings each method tries: as many as every other, the defaults among them.

A method without a density tries four lengths of its vector (merged minus base), one with a density three lengths, and
the best of them at another density. Lengths are applied to the merged weights, so they are there for methods without a
`scale` too.
"""

from collections.abc import Sequence
from typing import Any

from polytask.core.errors import BadValue
from polytask.core.names import METHODS, RULES
from polytask.merging.contract import find_method, method_names

SETTINGS = 4
SCALES = (1.0, 0.3, 2.0, 0.5)
OTHER_DENSITY = {True: 0.5, False: 0.2}
"""Beside the method's default density, by whether that is below a half."""

STORES = ("tall_masks", "emr", "sparse")

MASK_SCALES = (0.4, 0.2, 0.6)
"""Of a store of TALL-masks; each task takes its own best, as in the paper."""

ROOMS = ("merging", "balancing")
"""Where methods come from: an experiment may name a room instead of each of its methods."""


def other_parameters(name: str) -> dict[str, Any]:
    """What is tried beside lengths of the vector; empty for a method without a density."""
    density = find_method(name).parameters.get("density")
    return {} if density is None else {"density": OTHER_DENSITY[density.default < 0.5]}


def methods_for(tasks: Sequence[str], named: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """The methods that merge these tasks' models, and those that do not: name -> why. `named`: methods, or rooms."""
    chosen, left_out = [], {}
    for name in [each for part in named for each in (_of_room(part) if part in ROOMS else [part])]:
        try:
            find_method(name)().check_tasks(tasks)
        except BadValue as error:
            left_out[name] = str(error)
        else:
            chosen.append(name)
    return chosen, left_out


def _of_room(room: str) -> list[str]:
    return [name for name in method_names() if {**RULES, **METHODS}[name].startswith(f"polytask.{room}.")]
