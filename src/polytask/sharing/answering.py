"""A vocabulary, and a decoder whose tokens read those of the input: what answers every task of `text_to_text`."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from polytask.sharing.layers import Stack
from polytask.sharing.output_tokenizers import END, OutputTokenizer, prefix_tree, spelled
from polytask.sharing.transformer_blocks import (
    Attention,
    Reading,
    TransformerOptions,
    block,
    feedforward_network,
    reader_of,
)

NOTHING = -1  # fills up the shorter ones of several texts


class Vocabulary(nn.Module):
    """A vector for every byte, for the end of a text and for every bin of numbers; and one token for a whole text, made
    of its bytes: they read each other in order, and their mean is the token.

    So every text is in the vocabulary, also one that was never seen, and none has parameters of its own.
    """

    def __init__(self, width: int, bins: int, options: TransformerOptions) -> None:
        super().__init__()
        self.bytes = nn.Parameter(torch.randn(END + 1, width))
        self.bins = nn.Parameter(torch.randn(bins, width))
        self.block = block(width, options)
        self.norm = nn.LayerNorm(width)

    def forward(self, texts: Int[Tensor, "texts length"]) -> Float[Tensor, "texts d"]:
        """The tokens of these texts, given by their bytes."""
        seen = texts != NOTHING
        places = torch.arange(texts.shape[1], device=texts.device)
        x = self.bytes[texts.clamp(min=0)] + positions(places, self.bytes)
        x = self.block(x, seen[:, None, None, :]) * seen.unsqueeze(2)
        return self.norm(x.sum(1) / seen.sum(1, keepdim=True))


class AnswerLayer(nn.Module):
    """Tokens of an answer read each other, then the tokens of the input, then go through two layers; each is added."""

    def __init__(self, width: int, options: TransformerOptions) -> None:
        super().__init__()
        self.own = Attention(width, options.heads, options.dropout, reader_of(options))
        self.memory_norm, self.memory = nn.LayerNorm(width), Reading(width, options.heads)
        self.network_norm = nn.LayerNorm(width)
        self.network = feedforward_network(width, options.feedforward, options.dropout)

    def forward(
        self,
        x: Float[Tensor, "B N S d"],
        allowed: Bool[Tensor, "S S"],
        memory: Float[Tensor, "B L d"],
        mask: Bool[Tensor, "B L"] | None,
    ) -> Float[Tensor, "B N S d"]:
        shape = x.shape
        x = self.own.read(x.flatten(0, 1), allowed).reshape(shape).flatten(1, 2)
        x = x + self.memory(self.memory_norm(x), memory, mask)
        return (x + self.network(self.network_norm(x))).reshape(shape)


class AnswerDecoder(nn.Module):
    """N answers to each of B rows, which do not see each other."""

    def __init__(self, width: int, options: TransformerOptions) -> None:
        super().__init__()
        self.layers: Stack[AnswerLayer] = Stack(AnswerLayer(width, options) for _ in range(options.layers))
        self.norm = nn.LayerNorm(width)

    def forward(
        self,
        starts: Float[Tensor, "B N d"],
        tokens: Float[Tensor, "inner d"],
        depths: Int[Tensor, "S"],
        allowed: Bool[Tensor, "S S"],
        memory: Float[Tensor, "B L d"],
        mask: Bool[Tensor, "B L"] | None,
    ) -> Float[Tensor, "B N S d"]:
        """What follows each prefix is read off its last token.

        Args:
            starts: the token that an answer begins with.
            tokens: the last one of each prefix but the empty one.
            depths: how long each prefix is.
            allowed: which prefix begins with which, so that none sees another branch of the tree.
            memory, mask: the tokens of the input, and which are no padding.
        """
        rows, answers, _ = starts.shape
        x = torch.cat([starts.unsqueeze(2), tokens.to(starts.dtype).expand(rows, answers, -1, -1)], dim=2)
        x = x + positions(depths, x)
        for layer in self.layers:
            x = layer(x, allowed, memory, mask)
        return self.norm(x)


class Questions(nn.Module):
    """What is asked for a task, in bytes, and how its answers are read off a decoder; it has no parameters.

    Attributes:
        texts: the task's name, the names of its questions if there are several, and its answers where they are tokens.
        whole_answers: how many texts are answers.
        prefixes: of the answers, the empty one first.
    """

    texts: Tensor
    tokens: Tensor
    depths: Tensor
    allowed: Tensor
    steps: Tensor

    def __init__(self, task: str, tokenizer: OutputTokenizer, spells: bool) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        whole = () if spells else tokenizer.answers
        self.whole_answers = len(whole)
        texts = [spelled(text) for text in (task, *tokenizer.questions, *whole)]
        longest = max(len(text) for text in texts)
        if spells and tokenizer.answers:
            tree, size = prefix_tree([spelled(answer) for answer in tokenizer.answers]), END + 1
        else:
            size = tokenizer.bins or len(tokenizer.answers)
            tree = prefix_tree([(number,) for number in range(size)])
        self.prefixes = tree.prefixes
        most = max(len(steps) for steps in tree.steps)
        beyond = len(tree.prefixes) * size  # the place of a log-probability of 0
        steps = [[prefix * size + token for prefix, token in each] for each in tree.steps]
        allowed = [[one[: len(other)] == other for other in tree.prefixes] for one in tree.prefixes]
        self._keep("texts", [[*text, *[NOTHING] * (longest - len(text))] for text in texts])
        self._keep("tokens", [prefix[-1] for prefix in tree.prefixes[1:]])
        self._keep("depths", [len(prefix) for prefix in tree.prefixes])
        self._keep("steps", [[*each, *[beyond] * (most - len(each))] for each in steps])
        self.register_buffer("allowed", torch.tensor(allowed), persistent=False)

    def _keep(self, name: str, numbers: Sequence[Any]) -> None:
        """As a buffer that moves with the model and is not saved with it."""
        self.register_buffer(name, torch.tensor(numbers, dtype=torch.int64), persistent=False)

    def scores(self, hidden: Float[Tensor, "*B S d"], choices: Float[Tensor, "V d"]) -> Float[Tensor, "*B answers"]:
        """The log-probability of each answer: the sum of those of its tokens, each given the ones before it."""
        logits = hidden @ choices.to(hidden.dtype).mT / math.sqrt(hidden.shape[-1])
        of_tokens = functional.pad(logits.log_softmax(-1).flatten(-2), (0, 1))
        return of_tokens[..., self.steps].sum(-1)


def positions(places: Int[Tensor, "L"], like: Tensor) -> Float[Tensor, "L d"]:
    """Sines and cosines of the places (Vaswani et al. 2017, arXiv:1706.03762), as wide as the last dimension of
    `like`."""
    width = like.shape[-1]
    pairs = torch.arange((width + 1) // 2, dtype=like.dtype, device=like.device)
    angles = places.to(like.dtype).unsqueeze(1) * torch.exp(pairs * (-2 * math.log(10000) / width))
    return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)[:, :width]
