"""LibMTL's weightings, which its wheel keeps as classes to be mixed into a model of a certain form."""

import importlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.balancing.peers import MODULES, without_torchvision


def mixed_in(name: str, tasks: int, shared: Sequence[Tensor]) -> Any:
    """A weighting over these shared parameters; its `backward` takes a tensor of losses and writes into `.grad`."""
    without_torchvision()
    weighting = getattr(importlib.import_module(MODULES["LibMTL"]), name)

    def zero_grad(_: Any) -> None:  # it writes into gradients that are there
        for parameter in shared:
            if parameter.grad is not None:
                parameter.grad.zero_()

    members = {
        "task_num": tasks,
        "device": torch.device("cpu"),
        "rep_grad": False,
        "get_share_params": lambda _: iter(shared),
        "zero_grad_share_params": zero_grad,
    }
    found = type(name, (weighting,), members)()
    found.init_param()
    return found
