"""Which settings each method tries: as many as every other, the defaults among them.

A method without a density tries six lengths of its vector (merged minus base), one with a density three lengths at two
densities. Lengths are applied to the merged weights, so they are there for methods without a `scale` too.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from polytask.core.errors import BadValue
from polytask.merging.contract import find_method, method_names

SCALES = (1.0, 0.3, 0.5, 0.7, 1.5, 2.0)
SCALES_BESIDE_DENSITIES = (1.0, 0.3, 2.0)
MASK_SCALES = (0.4, 0.1, 0.2, 0.3, 0.5, 0.6)
"""Of a store of TALL-masks; each task takes its own best, as in the paper."""
OTHER_DENSITY = {True: 0.5, False: 0.2}
"""Beside the method's default density, by whether that is below a half."""


@dataclass(frozen=True)
class Merge:
    """One run of the merge.

    Attributes:
        parameters: of the method, beside its defaults.
        scales: how many times its vector is tried; the defaults are the first merge at scale 1.
    """

    parameters: dict[str, Any] = field(default_factory=dict)
    scales: tuple[float, ...] = SCALES


def merges_of(name: str) -> list[Merge]:
    """The merges that a method tries, its defaults first."""
    density = find_method(name).parameters.get("density")
    if density is None:
        return [Merge()]
    other = OTHER_DENSITY[density.default < 0.5]
    return [Merge(scales=SCALES_BESIDE_DENSITIES), Merge({"density": other}, SCALES_BESIDE_DENSITIES)]


def methods_for(tasks: Sequence[str], named: Sequence[str] | None = None) -> tuple[list[str], dict[str, str]]:
    """The methods that merge these tasks' models, and those that do not: name -> why."""
    chosen, left_out = [], {}
    for name in method_names() if named is None else named:
        try:
            find_method(name)().check_tasks(tasks)
        except BadValue as error:
            left_out[name] = str(error)
        else:
            chosen.append(name)
    return chosen, left_out
