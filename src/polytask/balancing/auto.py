"""The auto engine: for each module whichever exact route is less work, by its shapes or, where asked for, by the clock.

A route changes the last bits of a sum and nothing else, but a run that has timed its routes may take another one on
another day: its bits are then other ones. Once it has chosen, the choice is part of its state.
"""

import math
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch

from polytask.balancing.engine import Combined, Engine, Step, reads_gradients
from polytask.balancing.exact import ExactEngine
from polytask.balancing.group_rules import GroupRules
from polytask.balancing.layerwise import combined_by_layer, why_exact
from polytask.balancing.routes import FEWER_ROWS, LESS_WORK, NEVER
from polytask.core.constraints import Choice
from polytask.core.errors import BadValue, CheckpointError
from polytask.core.rules import RuleSpec

CANDIDATES = {"auto": LESS_WORK, "exact": NEVER, "layerwise": FEWER_ROWS}
ROUNDS, STEPS = 2, 3  # each candidate takes STEPS in a row, ROUNDS times; the first of them allocates, and is not timed


@dataclass
class Timing:
    """Steps of the candidates in turn.

    Attributes:
        tasks: those of the steps that count; a step of others takes another time.
        seconds: candidate -> of its steps that counted.
        layers: candidate -> the modules that it took by inner products.
        steps: how many have been taken.
    """

    tasks: list[str]
    seconds: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in CANDIDATES})
    layers: dict[str, tuple[str, ...]] = field(default_factory=dict)
    steps: int = 0

    @property
    def candidate(self) -> str:
        return list(self.seconds)[self.steps // STEPS % len(self.seconds)]

    @property
    def is_done(self) -> bool:
        return len(self.seconds) == 1 or self.steps >= ROUNDS * STEPS * len(self.seconds)

    @property
    def fastest(self) -> str:
        """By the median."""
        return min(self.seconds, key=lambda name: statistics.median(self.seconds[name] or [math.inf]))

    def note(self, seconds: float, layers: tuple[str, ...]) -> None:
        """Takes a step of the present candidate in; one that does what another does is dropped."""
        name = self.candidate
        if name not in self.layers and layers in self.layers.values():
            del self.seconds[name]
            return
        self.layers[name] = layers
        if self.steps % STEPS:
            self.seconds[name].append(seconds)
        self.steps += 1


class AutoEngine(Engine):
    """Inner products for the layers in which they take less work, as far as their shapes tell.

    Args:
        tune: time this against the engines "exact" and "layerwise" in the first steps, and keep the fastest.
        chosen: the engine that an earlier timing has found fastest; there is none then.
    """

    def __init__(
        self, *, tune: bool = False, chosen: Annotated[str | None, Choice("auto", "exact", "layerwise")] = None
    ) -> None:
        self.tune, self.chosen = tune, chosen
        self._exact = ExactEngine()
        self._timing: Timing | None = None

    def check(self, spec: RuleSpec, groups: str, scale: str) -> None:
        one_route = spec.form == "procedure" or spec.weighs_losses or spec.double_sampling or reads_gradients(spec)
        if one_route and (self.tune or self.chosen):
            raise BadValue("tune", self.tune, f"false: rule {spec.name!r} has one route, whatever the engine")

    def combine(self, step: Step, rules: GroupRules) -> Combined:
        if self.tune and self.chosen is None and why_exact(rules.spec) is None:
            return self._timed(step, rules)
        return combined_by_layer(step, rules, self._exact, CANDIDATES[self.chosen or "auto"])

    def _timed(self, step: Step, rules: GroupRules) -> Combined:
        timing = self._timing = self._timing or Timing(step.tasks)
        if step.tasks != timing.tasks:
            return combined_by_layer(step, rules, self._exact, LESS_WORK)
        start = _now(step)
        result = combined_by_layer(step, rules, self._exact, CANDIDATES[timing.candidate])
        if not result.skipped:
            layers = tuple(module for module, route in result.route.items() if route == "layerwise")
            timing.note(_now(step) - start, layers)
        if timing.is_done:
            self.chosen, self._timing = timing.fastest, None
        return result

    def state_dict(self) -> dict[str, Any]:
        return {} if self.chosen is None else {"chosen": self.chosen}

    def load_state_dict(self, values: Mapping[str, Any]) -> None:
        chosen = values.get("chosen")
        if chosen is not None and chosen not in CANDIDATES:
            raise CheckpointError(f"the saved state has chosen engine {chosen!r}; allowed: {' | '.join(CANDIDATES)}")
        self.chosen = chosen if self.chosen is None else self.chosen


def _now(step: Step) -> float:
    """Seconds, when the device of the parameters has done all that it was told."""
    device = next(iter(step.named.values())).device
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()
