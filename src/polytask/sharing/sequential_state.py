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
from polytask.sharing.tape import note_stages


class SequentialState(SequenceSharing):
    """s_0 learned; s_m = s_(m-1) + f_m(s_(m-1), x_m) where modality m is there, else s_(m-1). Heads read every state.

    A task's loss is the mean over the M + 1 states, all read by its one head, so that it predicts after any of them;
    `learn: last` trains the last alone. What a model gives is the prediction at the last; `predict_after_each` of a
    trained one gives them all.

    Source: Swamy et al. 2023, arXiv:2309.14118 (MultiModN): a module a modality that updates the state, skipped where
    the modality is missing, and decoders that are trained at every state, the first included.
    Departures: a module's output is added to the state; a state that a missing modality left as it is counts in the
    mean as any other; no penalty on the state's changes; modalities are runs of an encoder's tokens. The paper's full
    text was not at hand.
    Cost: one pass through the modules for any number of tasks, and in training M + 1 of each head.
    """

    class Options(SharingOptions):
        """Attributes: modalities, how many tokens each has, in their order (None: each token is one); state, its width;
        hidden_size of a module; learn: heads at every state, or at the last.
        """

        kind: Literal["sequential_state"] = "sequential_state"
        modalities: tuple[PositiveInt, ...] | None = None
        state: PositiveInt = 64
        hidden_size: PositiveInt = 64
        activation: Activation = "relu"
        learn: Literal["every", "last"] = "every"

    def __init__(self, make_encoder: MakeEncoder, tasks: Iterable[str], options: Options, seed: int = 0) -> None:
        super().__init__(make_encoder, tasks, options, seed)
        self.encoder = make_encoder()
        self.width, self.learns = options.state, options.learn == "every"
        self.sizes = modality_sizes(self.encoder, options.modalities, options.kind)
        with seeded(seed, "state"):
            self.start = nn.Parameter(torch.randn(options.state) / options.state**0.5)
            self.updates = Stack(Update(size * self.encoder.width, options) for size in self.sizes)

    @property
    def representation_width(self) -> int:
        return self.encoder.width

    def read(self, tokens: Tokens, tasks: list[str]) -> dict[str, Tensor]:
        *earlier, last = self.states(tokens)
        for task in tasks:
            note_stages(task, earlier, self.training and self.learns)
        return dict.fromkeys(tasks, last)

    def states(self, tokens: Tokens) -> list[Float[Tensor, "B state"]]:
        """s_0, s_1, ...: what is known before any and after each modality."""
        values, mask = tokens
        state, first = self.start.to(values.dtype).expand(values.shape[0], -1), 0
        states = [state]
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
