"""Optimisers and learning-rate schedules by name. A schedule is a function of the step, so it has no state to save."""

import math
from collections.abc import Callable, Iterable

import torch
from torch import nn

from polytask.training.spec import OptimizerSpec, ScheduleSpec

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw": torch.optim.AdamW,
    "adam": torch.optim.Adam,
    "sgd": torch.optim.SGD,
    "adagrad": torch.optim.Adagrad,
    "rmsprop": torch.optim.RMSprop,
}


def build_optimizer(spec: OptimizerSpec, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimiser with the options that the recipe gives; the others keep torch's defaults."""
    options = {key: value for key in ("weight_decay", "momentum", "betas") if (value := getattr(spec, key)) is not None}
    return OPTIMIZERS[spec.kind](list(parameters), lr=spec.lr, **options)


def factor(spec: ScheduleSpec, step: int, steps: int) -> float:
    """What the learning rate is multiplied by at `step` (0 ... steps - 1).

    >>> [factor(ScheduleSpec(kind="linear", warmup=0.5), step, 4) for step in range(4)]
    [0.5, 1.0, 1.0, 0.5]
    """
    warmup = round(spec.warmup * steps)
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    if spec.kind == "constant":
        return 1.0
    left = 1 - done if spec.kind == "linear" else (1 + math.cos(math.pi * done)) / 2
    return spec.floor + (1 - spec.floor) * left


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
