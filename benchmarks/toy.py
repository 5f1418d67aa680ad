"""The toy of the papers on gradient conflict: two losses of two numbers, with steep walls that trap the sum of both.

Source      Liu et al. 2021 (CAGrad, arXiv:2110.14048), as Navon et al. 2022 (Nash-MTL, arXiv:2202.01017) and Liu et al.
            2023 (FAMO, arXiv:2306.03792) use it: the first loss times 0.1, five starts, Adam with 1e-3.
Departures  Every rule that reads losses sees them above their lower bounds, -21 times their scale, since many refuse
            losses below zero: FAMO's `min_losses`, for all. An epoch, for the rules that count them, is 500 steps.

Every rule for training that needs nothing but losses and gradients walks from each start; all walk in step, so that one
evaluation of the two losses serves all. A walk that has stayed near the front for some time is there, and ends.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.optimize import brentq
from torch import Tensor

from polytask.core.errors import CheckpointError, PolytaskError
from polytask.core.names import RULES
from polytask.core.rules import find, rule_names
from polytask.core.state import Rule

LOWER, SCALE, BOUND = 5e-6, 0.1, -21.0
STARTS = ((-8.5, 7.5), (0.0, 0.0), (9.0, 9.0), (-7.5, -0.5), (9.0, -1.0))
STEPS, RATE, EPOCH = 50_000, 1e-3, 500
TASKS = ["first", "second"]
NEAR = 0.05  # from the front: fifty steps of Adam
STAY = 2000  # steps near the front after which a walk ends
SPACING = 0.25  # of the points that are kept of a path
PARAMETERS: dict[str, dict[str, Any]] = {"famo": {"decay": 0.0}}  # as in FAMO's own toy; the others at their defaults

# What the papers and an independent replication of them found: how many of the five starts lead to the front.
EXPECTED = {
    **dict.fromkeys(("mgda", "nash_mtl", "imtl_g", "aligned_mtl", "famo"), 5),
    **dict.fromkeys(("equal", "random_loss_weighting", "graddrop", "pcgrad", "dualproj", "cagrad"), 4),
}


class Seen(NamedTuple):
    """What the rules are shown of the points: losses [n, 2] above their bounds, gradients [n, 2, 2], inner products."""

    losses: Tensor
    gradients: Tensor
    gram: Tensor


# need of a rule -> what of a point it is given. The losses have no noise, so two independent batches are one.
NEEDS: Mapping[str, Callable[[Seen, int], Tensor]] = {
    "losses": lambda seen, point: seen.losses[point],
    "gram": lambda seen, point: seen.gram[point],
    "cross_gram": lambda seen, point: seen.gram[point],
    "stack": lambda seen, point: seen.gradients[point],
}


def losses(x: Tensor, scale: float = SCALE) -> Tensor:
    """Both losses at the points x [..., 2]: [..., 2]."""
    x1, x2 = x[..., 0], x[..., 1]
    c1, c2 = torch.tanh(x2 / 2).clamp(min=0), torch.tanh(-x2 / 2).clamp(min=0)
    l1 = (0.5 * (-x1 - 7) - torch.tanh(-x2)).abs().clamp(min=LOWER).log() + 6
    l2 = (0.5 * (-x1 + 3) + torch.tanh(-x2) + 2).abs().clamp(min=LOWER).log() + 6
    q1 = ((-x1 + 7).square() + 0.1 * (-x2 - 8).square()) / 10 - 20
    q2 = ((-x1 - 7).square() + 0.1 * (-x2 - 8).square()) / 10 - 20
    return torch.stack([scale * (l1 * c1 + q1 * c2), l2 * c1 + q2 * c2], dim=-1)


def seen_at(x: Tensor) -> Seen:
    """Losses above their bounds and gradients at the points x [n, 2]."""
    points = x.detach().requires_grad_()
    values = losses(points)
    gradients = torch.stack([torch.autograd.grad(values[:, t].sum(), points, retain_graph=True)[0] for t in (0, 1)], 1)
    bounds = torch.tensor([BOUND * SCALE, BOUND], dtype=x.dtype)
    return Seen(values.detach() - bounds, gradients, gradients @ gradients.mT)


def front(points: int = 141) -> np.ndarray:
    """The Pareto set as a line of points [n, 2]: there the gradients are parallel and opposed."""

    def across(x2: float, x1: float) -> float:
        g = seen_at(torch.tensor([[x1, x2]], dtype=torch.float64)).gradients[0]
        return float(g[0, 0] * g[1, 1] - g[0, 1] * g[1, 0])

    x1s = np.linspace(-7, 7, points)
    return np.array([[x1, brentq(across, -9.5, -7.5, args=(x1,))] for x1 in x1s])


def distance(x: np.ndarray, line: np.ndarray) -> np.ndarray:
    """Of the points x [n, 2] from a line of points."""
    inside = x[:, 0].clip(line[0, 0], line[-1, 0])
    return np.hypot(x[:, 0] - inside, x[:, 1] - np.interp(inside, line[:, 0], line[:, 1]))


def fitting(names: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """The rules that need nothing but losses and gradients, and why the others are left out; rules that are for merging
    checkpoints are in neither."""
    names = [name for name in names if not RULES.get(name, "").startswith("polytask.merging.")]
    left_out = {}
    for name in names:
        wanting = [need for need in find(name).needs if need not in NEEDS]
        if wanting:
            left_out[name] = f"needs {' and '.join(wanting)}"
    return [name for name in names if name not in left_out], left_out


class Walk:
    """One rule from one start."""

    def __init__(self, name: str) -> None:
        self.rule = Rule(name, TASKS, **PARAMETERS.get(name, {}))
        self.needs = [NEEDS[need] for need in self.rule.spec.needs]
        self.error: str | None = None

    def direction(self, seen: Seen, point: int, step: int) -> Tensor:
        """What takes the place of the gradient at this point; zero once the rule has refused one."""
        if self.error is None:
            try:
                return self._combined(seen, point, step)
            except PolytaskError as error:
                self.error = f"step {step}: {error}"
        return torch.zeros(2, dtype=torch.float64)

    def _combined(self, seen: Seen, point: int, step: int) -> Tensor:
        if step > 0:
            self.rule.after_step(TASKS, seen.losses[point])
            if step % EPOCH == 0:
                self.rule.after_epoch()
        keys = ("x",) if self.rule.spec.granularity == "element" else ()
        output = self.rule(TASKS, *(need(seen, point) for need in self.needs), keys=keys)
        self.rule.advance()
        return output if self.rule.spec.returns == "combined" else output @ seen.gradients[point]


def walked(
    names: Sequence[str],
    starts: Sequence[tuple[float, float]] = STARTS,
    steps: int = STEPS,
    say: Callable[[str], None] = lambda line: None,
) -> tuple[list[Walk], np.ndarray]:
    """Adam from each start by each rule: the walks, rule by rule, and where they were after each tenth step."""
    walks = [Walk(name) for name in names for _ in starts]
    x = torch.tensor([start for _ in names for start in starts], dtype=torch.float64)
    first, second = torch.zeros_like(x), torch.zeros_like(x)
    line, near = front(), np.zeros(len(walks), dtype=int)
    walking = torch.ones(len(walks), dtype=torch.bool)
    places = [x.numpy().copy()]
    for step in range(steps):
        on = walking.nonzero()[:, 0]
        seen = seen_at(x[on])
        d = torch.stack([walks[walk].direction(seen, point, step) for point, walk in enumerate(on.tolist())])
        first[on] = 0.9 * first[on] + 0.1 * d
        second[on] = 0.999 * second[on] + 0.001 * d.square()
        root = (second[on] / (1 - 0.999 ** (step + 1))).sqrt()
        x[on] -= RATE * (first[on] / (1 - 0.9 ** (step + 1))) / (root + 1e-8)
        if (step + 1) % 10 == 0:
            places.append(x.numpy().copy())
            near = np.where(distance(places[-1], line) <= NEAR, near + 10, 0)
            walking = torch.from_numpy(near < STAY)
            if not bool(walking.any()):
                break
        if (step + 1) % 1000 == 0:
            say(f"  step {step + 1:,} of {steps:,}: {int(walking.sum())} of {len(walks)} walks go on")
    return walks, np.stack(places, axis=1)


def measure(
    names: Sequence[str] | None = None, steps: int = STEPS, say: Callable[[str], None] = lambda line: None
) -> dict[str, Any]:
    """Whether, when and where each rule reaches the front from each start, and its path."""
    start = time.perf_counter()
    chosen, left_out = fitting(rule_names() if names is None else names)
    walks, places = walked(chosen, steps=steps, say=say)
    line = front()
    found = {}
    for place, name in enumerate(chosen):
        rows = range(place * len(STARTS), (place + 1) * len(STARTS))
        arrivals = [arrival(places[row], line) for row in rows]
        found[name] = {
            "reached": sum(step is not None for step in arrivals),
            "arrivals": arrivals,
            "ends": [[round(float(value), 2) for value in places[row][-1]] for row in rows],
            "paths": [written(places[row]) for row in rows],
            "parameters": PARAMETERS.get(name, {}),
            "errors": [walks[row].error for row in rows if walks[row].error],
        }
    return {
        "steps": steps,
        "learning_rate": RATE,
        "scale": SCALE,
        "starts": [list(point) for point in STARTS],
        "near": NEAR,
        "stay": STAY,
        "rules": found,
        "left_out": left_out,
        "seconds": time.perf_counter() - start,
    }


def arrival(path: np.ndarray, line: np.ndarray) -> int | None:
    """The step from which on a path [n, 2] with each tenth step's point stays near the front; None if it never does."""
    away = np.flatnonzero(distance(path, line) > NEAR)
    if not len(away):
        return 0
    return None if away[-1] == len(path) - 1 else 10 * (int(away[-1]) + 1)


def written(path: np.ndarray) -> str:
    """The path as "x1,x2 x1,x2 ...", with points a quarter apart, its first and its last."""
    kept = [path[0]]
    for point in path:
        if np.hypot(*(point - kept[-1])) >= SPACING:
            kept.append(point)
    return " ".join(f"{x:.2f},{y:.2f}" for x, y in [*kept, path[-1]])


def joined(first: Mapping[str, Any], *others: Mapping[str, Any]) -> dict[str, Any]:
    """The rules of several results of `measure` as one.

    Raises:
        CheckpointError: they did not walk alike.
    """
    alike = ("steps", "learning_rate", "scale", "starts", "near", "stay")
    rules, left_out = dict(first["rules"]), dict(first["left_out"])
    for other in others:
        for key in alike:
            if first[key] != other[key]:
                raise CheckpointError(f"results of the toy cannot be joined: {key} is {first[key]} and {other[key]}")
        rules = {**rules, **{name: about for name, about in other["rules"].items() if name not in rules}}
        left_out = {**other["left_out"], **left_out}
    return {**first, "rules": rules, "left_out": left_out}
