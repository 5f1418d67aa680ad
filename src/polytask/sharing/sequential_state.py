"""Sequential fusion: a state that every modality in turn changes, and that a missing modality leaves as it is."""

from collections.abc import Iterable
from typing import Literal

import torch
from jaxtyping import Bool, Float
from pydantic import PositiveInt
from torch import Tensor, nn

from polytask.sharing.contract import MakeEncoder
from polytask.sharing.encoders.contract import Tokens
from polytask.sharing.layers import ACTIVATIONS, Activation, Stack, seeded
from polytask.sharing.modalities import modality_sizes
from polytask.sharing.sequences import SequenceSharing
from polytask.sharing.spec import SharingOptions


class SequentialState(SequenceSharing):
    """s_0 learned; s_m = s_(m-1) + f_m(s_(m-1), x_m) where modality m is there, else s_(m-1). Heads read the last.

    Source: Swamy et al. 2023, arXiv:2309.14118 (MultiModN): a module a modality that updates the state, skipped where
    the modality is missing, and decoders that read the state.
    Departures: a module's output is added to the state; heads learn at the last state only, though `states` gives all
    of them; modalities are runs of an encoder's tokens.
    Cost: one pass through the modules for any number of tasks.
    """

    class Options(SharingOptions):
        """Attributes: modalities, how many tokens each has, in their order (None: each token is one); state, its width;
        hidden_size of a module.
        """

        kind: Literal["sequential_state"] = "sequential_state"
        modalities: tuple[PositiveInt, ...] | None = None
        state: PositiveInt = 64
        hidden_size: PositiveInt = 64
        activation: Activation = "relu"

    def __init__(self, make_encoder: MakeEncoder, tasks: Iterable[str], options: Options, seed: int = 0) -> None:
        super().__init__(make_encoder, tasks, options, seed)
        self.encoder = make_encoder()
        self.width = options.state
        self.sizes = modality_sizes(self.encoder, options.modalities, options.kind)
        with seeded(seed, "state"):
            self.start = nn.Parameter(torch.randn(options.state) / options.state**0.5)
            self.updates = Stack(Update(size * self.encoder.width, options) for size in self.sizes)

    @property
    def representation_width(self) -> int:
        return self.encoder.width

    def read(self, tokens: Tokens, tasks: list[str]) -> dict[str, Tensor]:
        return dict.fromkeys(tasks, self.states(tokens)[-1])

    def states(self, tokens: Tokens) -> list[Float[Tensor, "B state"]]:
        """s_1, s_2, ...: what is known after each modality."""
        values, mask = tokens
        state, states, first = self.start.to(values.dtype).expand(values.shape[0], -1), [], 0
        for size, update in zip(self.sizes, self.updates, strict=True):
            part = slice(first, first + size)
            seen = None if mask is None else mask[:, part]
            state = update(state, values[:, part], seen)
            states.append(state)
            first += size
        return states


class Update(nn.Module):
    """One modality's change of the state."""

    def __init__(self, width: int, options: SequentialState.Options) -> None:
        super().__init__()
        self.inner = nn.Linear(options.state + width, options.hidden_size)
        self.activation = ACTIVATIONS[options.activation]()
        self.outer = nn.Linear(options.hidden_size, options.state)

    def forward(
        self, state: Float[Tensor, "B state"], values: Float[Tensor, "B n d"], seen: Bool[Tensor, "B n"] | None
    ) -> Float[Tensor, "B state"]:
        if seen is not None:
            values = values * seen.unsqueeze(2).to(values.dtype)
        change = self.outer(self.activation(self.inner(torch.cat([state, values.flatten(1)], dim=1))))
        return state + change if seen is None else state + change * seen.any(1, keepdim=True).to(change.dtype)
