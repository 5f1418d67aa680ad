"""Experts that read only the tokens that a router sends them: networks of two layers, and heads of attention.

Weights are [tokens, experts], zero where a token does not use an expert. When a model is exported every expert reads
all tokens, as shapes must not depend on the numbers.
"""

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from polytask.sharing.layers import NamedModules, seeded


def precise(tokens: Tensor) -> Tensor:
    """What a router reads: half precision would flip who is among the k."""
    return tokens if tokens.dtype == torch.float64 else tokens.float()


def readers(weights: Float[Tensor, "N E"]) -> list[Int[Tensor, "n"]]:
    """Of each expert the tokens that it reads. One that no token chose has none and still is in the graph, so that all
    processes see one graph."""
    if torch.compiler.is_exporting():
        return [torch.arange(weights.shape[0], device=weights.device)] * weights.shape[1]
    return [weights[:, expert].nonzero()[:, 0] for expert in range(weights.shape[1])]


def _sum(
    like: Float[Tensor, "N d"], rows: list[Tensor], weights: Float[Tensor, "N E"], made: list[Tensor]
) -> Float[Tensor, "N d"]:
    """For each token the weighted sum of what the experts that read it made."""
    weighted = [
        weights[own, expert].unsqueeze(1) * each for expert, (own, each) in enumerate(zip(rows, made, strict=True))
    ]
    return torch.zeros_like(like).index_add(0, torch.cat(rows), torch.cat(weighted).to(like.dtype))


class Networks(nn.Module):
    """Networks of two layers, by number; each starts from its own number alone."""

    def __init__(self, numbers: Iterable[int], width: int, inner: int, place: str, seed: int) -> None:
        super().__init__()
        self.experts: NamedModules[nn.Sequential] = NamedModules()
        for number in numbers:
            with seeded(seed, place, "expert", number):
                self.experts[str(number)] = nn.Sequential(nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, width))

    def forward(
        self,
        x: Float[Tensor, "B L d"],
        weights: Float[Tensor, "N E"],
        numbers: Sequence[int],
        mask: Bool[Tensor, "B L"] | None = None,
    ) -> Float[Tensor, "B L d"]:
        """For each token the weighted sum of what its experts, columns of the weights, make of it.

        `mask` is of no use here: who is masked has no weights.
        """
        tokens, rows = x.flatten(0, 1), readers(weights)
        made = [self.experts[str(number)](tokens[own]) for number, own in zip(numbers, rows, strict=True)]
        return _sum(tokens, rows, weights, made).view_as(x)


class AttentionHeads(nn.Module):
    """Heads of attention, by number: each has queries and an outward matrix of its own, keys and values are common.

    Args:
        used: how many heads a token uses at the most.
    """

    def __init__(self, numbers: Iterable[int], width: int, size: int, used: int, place: str, seed: int) -> None:
        super().__init__()
        self.size, self.used = size, used
        with seeded(seed, place, "keys and values"):
            self.keys_values = nn.Linear(width, 2 * size)
        self.experts: NamedModules[AttentionHead] = NamedModules()
        for number in numbers:
            with seeded(seed, place, "expert", number):
                self.experts[str(number)] = AttentionHead(width, size)

    def forward(
        self,
        x: Float[Tensor, "B L d"],
        weights: Float[Tensor, "N E"],
        numbers: Sequence[int],
        mask: Bool[Tensor, "B L"] | None = None,
    ) -> Float[Tensor, "B L d"]:
        """For each token the weighted sum of what its heads read of the row's tokens (of those in the mask)."""
        tokens, rows = x.flatten(0, 1), readers(weights)
        slots, count = self._slots(weights)
        experts = [self.experts[str(number)] for number in numbers]
        asked = torch.cat([head.queries(tokens[own]) for head, own in zip(experts, rows, strict=True)])
        places = torch.cat([slots[own, expert] for expert, own in enumerate(rows)])
        queries = asked.new_zeros(tokens.shape[0], count, self.size).index_put((torch.cat(rows), places), asked)
        queries = queries.unflatten(0, x.shape[:2]).transpose(1, 2)  # [B, slots, L, size]
        keys, values = self.keys_values(x).unsqueeze(1).expand(-1, count, -1, -1).chunk(2, dim=-1)
        allowed = None if mask is None else mask[:, None, None, :]
        read = functional.scaled_dot_product_attention(queries, keys, values, attn_mask=allowed)
        read = read.transpose(1, 2).flatten(0, 1)  # [B L, slots, size]
        made = [
            head.outwards(read[own, slots[own, expert]])
            for expert, (head, own) in enumerate(zip(experts, rows, strict=True))
        ]
        return _sum(tokens, rows, weights, made).view_as(x)

    def _slots(self, weights: Float[Tensor, "N E"]) -> tuple[Int[Tensor, "N E"], int]:
        """Where a token's query to each of its experts stands among its queries, and how many it has."""
        if torch.compiler.is_exporting():
            experts = torch.arange(weights.shape[1], device=weights.device)
            return experts.expand(weights.shape[0], -1), weights.shape[1]
        return (weights != 0).cumsum(1) - 1, self.used


class AttentionHead(nn.Module):
    """What one head has of its own."""

    def __init__(self, width: int, size: int) -> None:
        super().__init__()
        self.queries, self.outwards = nn.Linear(width, size), nn.Linear(size, width)
