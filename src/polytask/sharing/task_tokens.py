"""A token a task among the tokens of the input, in a transformer whose masks say who may read whom."""

from collections.abc import Iterable, Mapping
from typing import ClassVar, Literal, cast

import torch
from jaxtyping import Bool, Float
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch.nn import functional

from polytask.core.errors import BadValue, MissingInput
from polytask.sharing.contract import MakeEncoder, Sharing
from polytask.sharing.encoders.contract import Tokens
from polytask.sharing.gates import Embedding
from polytask.sharing.layers import Stack, TaskModules, seeded
from polytask.sharing.spec import SharingOptions


class TaskTokens(Sharing):
    """Task tokens read the input's tokens (and each other, if they may); a task's features are its own token.

    Source: Sinodinos et al. 2025, arXiv:2511.09970 (MultiTab-Net), its multi-task masked attention: features need not
    read tasks, tasks need not read each other.
    Departures: attention runs over the tokens of a row only, not between rows; layers normalise before, not after.
    Cost: B x (L + T)^2 x width x 2 multiply-adds a layer for the attention, 4 + 2 x feedforward times width^2 a token
    for its matrices. With both masks a named task costs what a model of that task alone would.
    """

    reads: ClassVar[tuple[str, ...]] = ("sequence",)

    class Options(SharingOptions):
        """Attributes: layers; heads of the attention; feedforward, how many times as wide as a token the inner layer
        is; dropout; features_read_tasks, tasks_read_tasks: false masks it.
        """

        kind: Literal["task_tokens"] = "task_tokens"
        layers: PositiveInt = 2
        heads: PositiveInt = 4
        feedforward: PositiveInt = 2
        dropout: float = Field(default=0.0, ge=0, lt=1)
        features_read_tasks: bool = False
        tasks_read_tasks: bool = False

    def __init__(self, make_encoder: MakeEncoder, tasks: Iterable[str], options: Options, seed: int = 0) -> None:
        super().__init__(make_encoder, tasks, options, seed)
        self.tasks, self.options = list(tasks), options
        self.isolated = not (options.features_read_tasks or options.tasks_read_tasks)
        self.encoder = make_encoder()
        self.width = self.encoder.width
        if self.width % options.heads:
            allowed = f"a divisor of the width of a token, {self.width}"
            raise BadValue("sharing 'task_tokens': heads", options.heads, allowed)
        self.tokens: TaskModules[Embedding] = TaskModules()
        for task in self.tasks:
            with seeded(seed, "token", task):
                self.tokens[task] = Embedding(self.width)
        with seeded(seed, "blocks"):
            self.blocks = Stack(Block(self.width, options) for _ in range(options.layers))
            self.norm = nn.LayerNorm(self.width)

    def representation(self, inputs: Mapping[str, Tensor]) -> Float[Tensor, "B L d"]:
        """The tokens of the input, which all tasks read; MissingInput where rows are padded."""
        values, mask = self._tokens(inputs)
        if mask is not None:
            raise MissingInput("sharing 'task_tokens': rows of different length share no representation of one shape")
        return values

    def features(self, representation: Float[Tensor, "B L d"], tasks: list[str]) -> dict[str, Tensor]:
        return self._read(Tokens(representation), tasks)

    def forward(self, inputs: Mapping[str, Tensor], tasks: list[str]) -> dict[str, Tensor]:
        return self._read(self._tokens(inputs), tasks)

    def _tokens(self, inputs: Mapping[str, Tensor]) -> Tokens:
        return cast(Tokens, self.encoder(inputs))

    def _read(self, tokens: Tokens, tasks: list[str]) -> dict[str, Tensor]:
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
        last = self.norm(x[:, values.shape[1] :])
        return {task: last[:, present.index(task)] for task in tasks}

    def allowed(self, features: int, tasks: int, device: torch.device) -> Bool[Tensor, "L L"]:
        """Row i may read column j; features come first, then tasks."""
        allowed = torch.ones(features + tasks, features + tasks, dtype=torch.bool, device=device)
        if not self.options.features_read_tasks:
            allowed[:features, features:] = False
        if not self.options.tasks_read_tasks:
            allowed[features:, features:] = torch.eye(tasks, dtype=torch.bool, device=device)
        return allowed


class Block(nn.Module):
    """Attention and a two-layer network, each on normalised tokens and added to them."""

    def __init__(self, width: int, options: TaskTokens.Options) -> None:
        super().__init__()
        self.heads, self.dropout = options.heads, options.dropout
        self.attention_norm, self.network_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.inwards, self.outwards = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.network = nn.Sequential(
            nn.Linear(width, options.feedforward * width),
            nn.GELU(),
            nn.Dropout(options.dropout),
            nn.Linear(options.feedforward * width, width),
        )

    def forward(self, x: Float[Tensor, "B L d"], allowed: Bool[Tensor, "*B L L"]) -> Float[Tensor, "B L d"]:
        heads = self.inwards(self.attention_norm(x)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        dropout = self.dropout if self.training else 0.0
        read = functional.scaled_dot_product_attention(*heads.unbind(0), attn_mask=allowed, dropout_p=dropout)
        x = x + self.outwards(read.transpose(1, 2).flatten(2))
        return x + self.network(self.network_norm(x))
