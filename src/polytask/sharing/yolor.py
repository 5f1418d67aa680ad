"""Implicit latents: what a task knows without looking at the input, combined with what the network has seen."""

from collections.abc import Iterable
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from polytask.sharing.conditioning import Conditioned, ConditionedOptions
from polytask.sharing.contract import MakeEncoder
from polytask.sharing.layers import Stack, TaskModules, seeded

Combine = Literal["add", "multiply", "concatenate"]


class Yolor(Conditioned):
    """z becomes z + i_t, z * i_t, or a linear map of [z; i_t]: z the encoder's output, and that of further layers where
    there are any, i_t the task's implicit latent there, a vector of its own or a mixture Z c_t of vectors that all
    tasks share.

    Source: Wang, Yeh and Liao 2021, arXiv:2105.04206 (YOLOR), its implicit knowledge: latents as a vector or as a
    factorised matrix, combined by addition, multiplication or concatenation, in several places of a detector. On more
    tasks: Chang et al. 2023, arXiv:2309.16921.
    Departures: the paper's text was not at hand; which places is said in the recipe, by default the encoder's output
    alone.
    Cost: B x width for each named task and place; concatenation B x width x (width + latent) more.
    """

    on_output = True
    bases: nn.Parameter | None
    join: nn.Linear | None

    class Options(ConditionedOptions):
        """Attributes: combine; bases, how many vectors the tasks mix (None: each has its own); deviation at the start
        (from 1 where latents multiply, else from 0); further places as of `film`.
        """

        kind: Literal["yolor"] = "yolor"
        hidden_sizes: tuple[PositiveInt, ...] = ()
        combine: Combine = "multiply"
        bases: PositiveInt | None = None
        deviation: float = Field(default=0.02, ge=0)

    def __init__(self, make_encoder: MakeEncoder, tasks: Iterable[str], options: Options, seed: int = 0) -> None:
        tasks = list(tasks)
        super().__init__(make_encoder, tasks, options, seed)
        self.combine = options.combine
        first, *further = self.widths
        with seeded(seed, "shared latents"):  # of the first place they lie here, as before there were others
            place = Shared(first, options)
        self.bases, self.join = place.bases, place.join
        self.further: Stack[Shared] = Stack()
        for number, width in enumerate(further, start=1):
            with seeded(seed, "shared latents", number):
                self.further.append(Shared(width, options))
        self.latents: TaskModules[Latent] = TaskModules()
        self.further_latents: TaskModules[Stack[Latent]] = TaskModules()
        for task in tasks:
            with seeded(seed, "latent", task):
                self.latents[task] = Latent(first, options)
                self.further_latents[task] = Stack(Latent(width, options) for width in further)

    def conditioned(self, task: str, place: int, x: Float[Tensor, "*B d"]) -> Float[Tensor, "*B d"]:
        own = [self.latents[task], *self.further_latents[task]][place].vector
        bases, join = [(self.bases, self.join), *((other.bases, other.join) for other in self.further)][place]
        latent = (own if bases is None else own @ bases).to(x.dtype)
        if self.combine == "add":
            return x + latent
        if join is None:
            return x * (latent + 1)
        return join(torch.cat([x, latent.expand_as(x)], dim=-1))

    def condition(self, task: str) -> str:
        met = {"add": "added to", "multiply": "multiplied with", "concatenate": "joined to"}[self.combine]
        mixed = "" if self.bases is None else f", mixed from {len(self.bases)}"
        what = "what the encoder gives" if len(self.widths) == 1 else f"what {len(self.widths)} layers give"
        return f"a latent of {' + '.join(map(str, self.widths))}{mixed}, {met} {what}"


class Shared(nn.Module):
    """What latents of one place have in common: the vectors that they are mixed from, the map of what they are joined
    to; None where there is none."""

    def __init__(self, width: int, options: Yolor.Options) -> None:
        super().__init__()
        self.bases: nn.Parameter | None = None
        self.join: nn.Linear | None = None
        if options.bases is not None:
            self.bases = nn.Parameter(torch.randn(options.bases, width) * options.deviation)
        if options.combine == "concatenate":
            self.join = nn.Linear(2 * width, width)


class Latent(nn.Module):
    """A task's numbers of one place, around 0."""

    def __init__(self, width: int, options: Yolor.Options) -> None:
        super().__init__()
        deviation = options.deviation if options.bases is None else 1.0
        self.vector = nn.Parameter(torch.randn(options.bases or width) * deviation)
