"""Prefixes: vectors of the task before the input's tokens, which a transformer that all tasks share then reads."""

from collections.abc import Iterable
from typing import Literal

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from polytask.sharing.contract import MakeEncoder
from polytask.sharing.encoders.contract import Tokens
from polytask.sharing.layers import TaskModules, seeded
from polytask.sharing.sequences import SequenceSharing, mean_of
from polytask.sharing.transformer_blocks import TransformerOptions, blocks


class Prefix(SequenceSharing):
    """[p_t1, ..., p_tP, x_1, ..., x_L] through shared blocks; task t's features are the mean of the input's places.

    Unlike task tokens, which only read, a prefix is read by every token: each task sees the input in its own way.

    Source: Li and Liang 2021, arXiv:2101.00190, and Lester et al. 2021, arXiv:2104.08691: learned vectors before the
    input that steer a shared transformer.
    Departures: the vectors stand before the first block only (Lester et al.); the transformer learns with them.
    Cost: a pass through the blocks for each named task, over P + L tokens.
    """

    class Options(TransformerOptions):
        """Attributes: length, P; and those of the transformer."""

        kind: Literal["prefix"] = "prefix"
        length: PositiveInt = 4

    def __init__(self, make_encoder: MakeEncoder, tasks: Iterable[str], options: Options, seed: int = 0) -> None:
        super().__init__(make_encoder, tasks, options, seed)
        self.encoder = make_encoder()
        self.width = self.encoder.width
        self.prefixes: TaskModules[Vectors] = TaskModules()
        for task in tasks:
            with seeded(seed, "prefix", task):
                self.prefixes[task] = Vectors(options.length, self.width)
        with seeded(seed, "blocks"):
            self.blocks = blocks(self.width, options)
            self.norm = nn.LayerNorm(self.width)

    def read(self, tokens: Tokens, tasks: list[str]) -> dict[str, Tensor]:
        values, mask = tokens
        rows, length = values.shape[0], len(self.prefixes[tasks[0]].vectors)
        before = [self.prefixes[task].vectors.to(values.dtype).expand(rows, -1, -1) for task in tasks]
        x = torch.cat([torch.cat([own, values], dim=1) for own in before])  # [T B, P + L, d]
        if mask is None:
            allowed = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device)
        else:
            seen = torch.cat([mask.new_ones(rows, length), mask], dim=1).repeat(len(tasks), 1)
            allowed = seen[:, None, None, :]
        for block in self.blocks:
            x = block(x, allowed)
        last = self.norm(x[:, length:]).unflatten(0, (len(tasks), rows))
        return {task: mean_of(of, mask) for task, of in zip(tasks, last.unbind(0), strict=True)}

    def condition(self, task: str) -> str:
        return f"{len(self.prefixes[task].vectors)} vectors before the input's tokens"


class Vectors(nn.Module):
    """A task's vectors, [P, d]."""

    def __init__(self, length: int, width: int) -> None:
        super().__init__()
        self.vectors = nn.Parameter(torch.randn(length, width) / width**0.5)
