"""A rule on vectors that fit in memory, block by block, as a merge of files larger than memory calls it."""

from typing import Any

import torch
from torch import Tensor

from polytask.core.blocks import bounds, shaped
from polytask.core.constraints import named_by
from polytask.core.rules import RuleSpec
from polytask.core.statistics import measure


def in_blocks(spec: RuleSpec, stack: Tensor, base: Tensor | None = None, **extra: Any) -> Tensor:
    """The combined vector of one parameter's stack [T, *shape], after the passes of the rule's statistic, if any.

    Args:    spec: a rule on vectors.
             stack, base: its inputs.
             extra: keyword arguments of its function.
    """
    tasks, shape = len(stack), stack.shape[1:]
    rows = stack.reshape(tasks, -1)
    cuts = bounds(shape, spec.granularity)
    blocks = [shaped(rows[:, start:stop], shape, spec.granularity) for start, stop in cuts]
    statistic = spec.statistic(**named_by(spec.statistic, extra)) if spec.statistic else None
    state = measure(statistic, tasks, lambda: (block.flatten(1) for block in blocks)) if statistic else None
    flat, combined = None if base is None else base.reshape(1, -1), []
    for number, ((start, stop), block) in enumerate(zip(cuts, blocks, strict=True)):
        inputs: list[Any] = (
            [block] if flat is None else [block, shaped(flat[:, start:stop], shape, spec.granularity)[0]]
        )
        if spec.statistic:
            inputs.append(statistic.at(state, number) if statistic else None)
        chosen = {**extra, "noise": extra["noise"].shifted(start)} if spec.random else extra
        combined.append(spec.function(*inputs, **chosen).reshape(-1))
    return torch.cat(combined).view(shape)
