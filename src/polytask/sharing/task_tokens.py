"""A token a task among the tokens of the input, in a transformer whose masks say who may read whom."""

from collections.abc import Iterable
from typing import Literal

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from polytask.sharing.contract import MakeEncoder
from polytask.sharing.encoders.contract import Tokens
from polytask.sharing.gates import Embedding
from polytask.sharing.layers import TaskModules, seeded
from polytask.sharing.sequences import CoarseTokens
from polytask.sharing.transformer_blocks import TransformerOptions, blocks


class TaskTokens(CoarseTokens):
    """Task tokens read the input's tokens (and each other, if they may); a task's features are its own token.

    Where the encoder gives a pyramid the tokens are the pixels of its coarsest map, with a learned vector a place, and
    a task's decoder reads that map with each channel multiplied by 2 sigmoid of its token's.

    Source: Sinodinos et al. 2025, arXiv:2511.09970 (MultiTab-Net), its multi-task masked attention: features need not
    read tasks, tasks need not read each other. For maps Ye and Xu 2023 (TaskPrompter, ICLR): task tokens beside those
    of an image, whose attention to channels makes a task's map.
    Departures: attention runs over the tokens of a row only, not between rows; layers normalise before, not after. For
    maps the channels' attention is a gate, and there is none over places; that paper's full text was not at hand.
    Cost: B x (L + T)^2 x width x 2 multiply-adds a layer for the attention, 4 + 2 x feedforward times width^2 a token
    for its matrices. With both masks a named task costs what a model of that task alone would.
    """

    class Options(TransformerOptions):
        """Attributes: those of the transformer; features_read_tasks, tasks_read_tasks: false masks it."""

        kind: Literal["task_tokens"] = "task_tokens"
        features_read_tasks: bool = False
        tasks_read_tasks: bool = False

    def __init__(self, make_encoder: MakeEncoder, tasks: Iterable[str], options: Options, seed: int = 0) -> None:
        super().__init__(make_encoder, tasks, options, seed)
        self.tasks, self.options = list(tasks), options
        self.isolated = not (options.features_read_tasks or options.tasks_read_tasks)
        width = self.token_width
        self.tokens: TaskModules[Embedding] = TaskModules()
        for task in self.tasks:
            with seeded(seed, "token", task):
                self.tokens[task] = Embedding(width)
        with seeded(seed, "blocks"):
            self.blocks = blocks(width, options)
            self.norm = nn.LayerNorm(width)

    def read(self, tokens: Tokens, tasks: list[str]) -> dict[str, Tensor]:
        return self._read(tokens, tasks)[1]

    def read_map(self, tokens: Tokens, tasks: list[str]) -> dict[str, Tensor]:
        values, own = self._read(tokens, tasks)
        return {task: values * 2 * token.sigmoid().unsqueeze(1) for task, token in own.items()}

    def condition(self, task: str) -> str:
        return f"a token of {len(self.tokens[task].vector)} among the input's"

    def _read(self, tokens: Tokens, tasks: list[str]) -> tuple[Tensor, dict[str, Tensor]]:
        """What the input's tokens and the named tasks' have become."""
        values, mask = tokens
        present = tasks if self.isolated else self.tasks
        own = torch.stack([self.tokens[task].vector for task in present]).to(values.dtype)
        x = torch.cat([values, own.expand(values.shape[0], -1, -1)], dim=1)
        allowed = self.allowed(values.shape[1], len(present), values.device)
        if mask is not None:  # nobody reads padding
            seen = torch.cat([mask, mask.new_ones(mask.shape[0], len(present))], dim=1)
            allowed = (allowed & seen.unsqueeze(1)).unsqueeze(1)
        for block in self.blocks:
            x = block(x, allowed)
        values, last = self.norm(x).split([values.shape[1], len(present)], dim=1)
        return values, {task: last[:, present.index(task)] for task in tasks}

    def allowed(self, features: int, tasks: int, device: torch.device) -> Bool[Tensor, "L L"]:
        """Row i may read column j; features come first, then tasks."""
        allowed = torch.ones(features + tasks, features + tasks, dtype=torch.bool, device=device)
        if not self.options.features_read_tasks:
            allowed[:features, features:] = False
        if not self.options.tasks_read_tasks:
            allowed[features:, features:] = torch.eye(tasks, dtype=torch.bool, device=device)
        return allowed
