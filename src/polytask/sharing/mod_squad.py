"""A transformer of experts in which each task uses few, and each expert serves few tasks; a task's part can be taken
out."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal, Self

import torch
from jaxtyping import Bool, Float
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from polytask.core.errors import BadValue, UnknownName
from polytask.sharing.contract import MakeEncoder
from polytask.sharing.encoders.contract import Tokens
from polytask.sharing.gates import Scores
from polytask.sharing.layers import Stack, TaskModules, seeded
from polytask.sharing.selection import TopK
from polytask.sharing.sequences import CoarseTokens, mean_of
from polytask.sharing.sparse_experts import AttentionHeads, Networks, precise
from polytask.sharing.spec import SharingOptions
from polytask.sharing.tape import listening, note_gate, note_penalty


class ModSquad(CoarseTokens):
    """In each layer x <- x + sum_e w_te(x) a_e(x), heads of attention, then the same with networks; the router of task
    t gives a token the k experts that it scores highest. A task's features are the mean of its tokens. A term makes
    tasks and experts depend on each other: the mutual information of task and expert, over the tokens, is added to the
    losses with a negative sign.

    A batch may have labels of one task only (sources with different tasks): of the tasks that are not in it the term
    takes the use that they made of the experts before. `trimmed` in `polytask.sharing.trimming` removes the experts
    that a task does not use; a task that comes later needs a router of its own and nothing else.

    Source: Chen et al. 2023, arXiv:2306.17165 (one general-purpose model from data sets with different tasks), which
    builds on Mod-Squad, Chen et al. 2022, arXiv:2212.08066: routers a task in attention and networks, the mutual
    information of tasks and experts as a term, the extraction of a task's experts. Attention by heads with keys and
    values in common: Zhang et al. 2022, arXiv:2210.05144.
    Departures: neither paper's full text was at hand, so these are ours: P(e | t) is the mean over tokens of the
    softmax of all scores, before the k are chosen; P(t) is equal for all tasks; an absent task's P(e | t) is a running
    mean; no noise on the scores and no other term that balances. With several processes each remembers its own rows.
    Cost: for each named task the whole transformer. Per layer and token (2 + 2 / k) width^2 multiply-adds for the
    matrices of its k heads and 2 L width for what they read, 2 feedforward width^2 for its k networks, whatever the
    number of experts there are; width x experts for each router.
    """

    class Options(SharingOptions):
        """Attributes: layers; heads and experts to choose among in each; k of each are used by a token; feedforward,
        how many times as wide as a token the inner layers of its k networks are together; information, factor of the
        term; memory, how much of a task's remembered use a batch leaves; uses, task -> place -> the numbers of the
        experts that it may use, where these are not all.
        """

        kind: Literal["mod_squad"] = "mod_squad"
        layers: PositiveInt = 2
        heads: PositiveInt = 4
        experts: PositiveInt = 4
        k: PositiveInt = 2
        feedforward: PositiveInt = 2
        information: float = Field(default=0.01, ge=0)
        memory: float = Field(default=0.9, ge=0, lt=1)
        uses: dict[str, dict[str, tuple[PositiveInt, ...]]] = Field(default_factory=dict)

        def of_tasks(self, tasks: Sequence[str]) -> Self:
            """Without what only tasks that have left may use: it leaves with them."""
            return self.model_copy(update={"uses": {task: own for task, own in self.uses.items() if task in tasks}})

    def __init__(self, make_encoder: MakeEncoder, tasks: Iterable[str], options: Options, seed: int = 0) -> None:
        super().__init__(make_encoder, tasks, options, seed)
        check_sizes(self.token_width, options)
        self.blocks: Stack[RoutedBlock] = Stack(_blocks(list(tasks), self.token_width, options, seed))
        self.norm = nn.LayerNorm(self.token_width)

    def read(self, tokens: Tokens, tasks: list[str]) -> dict[str, Tensor]:
        return {task: mean_of(x, tokens.mask) for task, x in self.read_map(tokens, tasks).items()}

    def read_map(self, tokens: Tokens, tasks: list[str]) -> dict[str, Float[Tensor, "B L d"]]:
        streams = dict.fromkeys(tasks, tokens.values)
        for block in self.blocks:
            streams = block(streams, tokens.mask)
        return {task: self.norm(x) for task, x in streams.items()}

    def uses(self) -> dict[str, dict[str, tuple[int, ...]]]:
        """task -> place -> the numbers of the experts that it may use."""
        found: dict[str, dict[str, tuple[int, ...]]] = {}
        for block in self.blocks:
            for task, numbers in block.own.items():
                found.setdefault(task, {})[block.place] = tuple(numbers)
        return found

    def close(self, uses: Mapping[str, Mapping[str, tuple[int, ...]]]) -> None:
        """Leaves each task these experts, and removes those that no task has any more."""
        for block in self.blocks:
            block.close({task: list(by_place[block.place]) for task, by_place in uses.items()})


def check_sizes(width: int, options: ModSquad.Options) -> None:
    """BadValue where heads or networks would have no width, or a task's experts are none of the model's."""
    if width % options.k:
        raise BadValue("sharing 'mod_squad': k", options.k, f"a divisor of the width of a token, {width}")
    places = _places(options)
    for task, chosen in options.uses.items():
        for place, numbers in chosen.items():
            if place not in places:
                raise UnknownName("place", place, places, f"uses of mod_squad: {task}")
            if not numbers or len(set(numbers)) != len(numbers) or max(numbers) > places[place]:
                allowed = f"one or more different numbers from 1 to {places[place]}"
                raise BadValue(f"sharing 'mod_squad': uses of task {task!r} in {place}", list(numbers), allowed)


def _places(options: ModSquad.Options) -> dict[str, int]:
    """Where experts are, in their order, and how many are there."""
    return {
        f"layer.{layer}.{what}": count
        for layer in range(options.layers)
        for what, count in (("attention", options.heads), ("network", options.experts))
    }


def _blocks(tasks: list[str], width: int, options: ModSquad.Options, seed: int) -> "Iterable[RoutedBlock]":
    size = width // options.k

    def heads(place: str, numbers: list[int]) -> AttentionHeads:
        return AttentionHeads(numbers, width, size, options.k, place, seed)

    def networks(place: str, numbers: list[int]) -> Networks:
        return Networks(numbers, width, options.feedforward * size, place, seed)

    for place, count in _places(options).items():
        make = heads if place.endswith("attention") else networks
        yield RoutedBlock(place, tasks, width, count, options, seed, make)


class RoutedBlock(nn.Module):
    """Tokens to which is added what their experts make of them, normalised; each task has a router.

    A router keeps its scores of experts that its task may not use: so the others' do not change by a bit.
    """

    def __init__(
        self,
        place: str,
        tasks: list[str],
        width: int,
        count: int,
        options: ModSquad.Options,
        seed: int,
        make: Callable[[str, list[int]], AttentionHeads | Networks],
    ) -> None:
        super().__init__()
        self.place, self.options, self.select = place, options, TopK(k=options.k)
        self.own = {task: allowed(task, place, count, options) for task in tasks}
        self.norm = nn.LayerNorm(width)
        self.mixture = make(place, sorted({number for numbers in self.own.values() for number in numbers}))
        self.gates: TaskModules[Scores] = TaskModules()
        self.uses: TaskModules[Use] = TaskModules()
        for task in tasks:
            with seeded(seed, place, "gate", task):
                self.gates[task] = Scores(self.select.scores(count), width, self.select)
            self.uses[task] = Use(count)

    def close(self, own: Mapping[str, list[int]]) -> None:
        """Leaves each task these experts, and removes those that no task has any more."""
        self.own = {task: sorted(numbers) for task, numbers in own.items()}
        for number in list(self.mixture.experts):
            if not any(int(number) in numbers for numbers in self.own.values()):
                del self.mixture.experts[number]

    def forward(
        self, streams: Mapping[str, Float[Tensor, "B L d"]], mask: Bool[Tensor, "B L"] | None
    ) -> dict[str, Float[Tensor, "B L d"]]:
        found, use = {}, {}
        for task, x in streams.items():
            read = self.norm(x)
            tokens, real = read.flatten(0, 1), None
            if mask is not None and not torch.compiler.is_exporting():  # nobody routes padding
                real = mask.flatten().nonzero()[:, 0]
            scores = self._scores(task, tokens if real is None else tokens[real])
            weights = self._weights(task, scores).to(tokens.dtype)
            if real is not None:
                weights = weights.new_zeros(len(tokens), weights.shape[1]).index_copy(0, real, weights)
            found[task] = x + self.mixture(read, weights, self.own[task], mask)
            if self.training:
                use[task] = scores.softmax(-1).mean(0)  # P(e | t)
        if use:
            self._remember(use)
        return found

    def _scores(self, task: str, tokens: Float[Tensor, "N d"]) -> Float[Tensor, "N E"]:
        """Of all experts, minus infinity for those that the task may not use."""
        with torch.autocast(tokens.device.type, enabled=False):
            scores = self.gates[task](precise(tokens))
        closed = [number + 1 not in self.own[task] for number in range(scores.shape[1])]
        return scores.masked_fill(torch.tensor(closed, device=scores.device), -torch.inf) if any(closed) else scores

    def _weights(self, task: str, scores: Float[Tensor, "N E"]) -> Float[Tensor, "N own"]:
        """Of the experts that the task may use."""
        weights = self.select.weights(scores, scores.shape[1])[:, [number - 1 for number in self.own[task]]]
        note_gate(self.place, task, [f"shared {number}" for number in self.own[task]], weights)
        return weights

    def _remember(self, use: Mapping[str, Float[Tensor, "E"]]) -> None:
        """Notes the named tasks' terms, with what is remembered of the others, and remembers these."""
        if listening() and self.options.information > 0:
            tasks = list(self.uses)
            every = torch.stack([use[task] if task in use else self.uses[task].mean for task in tasks])
            for task, part in zip(tasks, information(every), strict=True):
                if task in use:
                    note_penalty(task, -self.options.information * part)
        for task, shares in use.items():
            remembered = self.uses[task].mean
            remembered.lerp_(shares.detach().to(remembered.dtype), 1 - self.options.memory)


class Use(nn.Module):
    """The running mean of a task's P(e | t), equal shares at the start."""

    mean: Tensor

    def __init__(self, experts: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.full((experts,), 1 / experts))


def allowed(task: str, place: str, count: int, options: ModSquad.Options) -> list[int]:
    """The numbers of the experts that a task may use: where it is not named, those of any task that is."""
    of = {name: chosen[place] for name, chosen in options.uses.items() if place in chosen}
    if task in of:
        return sorted(of[task])
    return sorted({number for numbers in of.values() for number in numbers}) or list(range(1, count + 1))


def information(use: Float[Tensor, "T E"]) -> Float[Tensor, "T"]:
    """Each task's part of the mutual information I(T; E), in nats, for tasks that are equally likely.

    I = 1/T sum_t KL(P(e | t) || P(e)), and as P(e) is the mean over tasks the slope of I along the probabilities of one
    task is that of its own part with P(e) held: so each part has a gradient for its own task only, and they add up to
    the gradient of I.

    Args:
        use: P(e | t), rows that sum to 1.
    """
    whole = use.detach().mean(0)
    used = use > 0  # 0 log 0 is 0
    ratio = torch.where(used, use, 1.0) / torch.where(used, whole, 1.0)
    return (use * ratio.log()).sum(1) / len(use)
