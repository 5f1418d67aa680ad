"""Implicit latents: what a task knows without looking at the input, combined with what the encoder has seen."""

from collections.abc import Iterable, Mapping
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from polytask.sharing.contract import MakeEncoder, Sharing
from polytask.sharing.layers import TaskModules, seeded
from polytask.sharing.spec import SharingOptions


class Yolor(Sharing):
    """Task t's features are z + i_t, z * i_t, or a linear map of [z; i_t]: z the encoder's output, i_t its implicit
    latent, a vector of its own or a mixture Z c_t of vectors that all tasks share.

    Source: Wang, Yeh and Liao 2021, arXiv:2105.04206 (YOLOR), its implicit knowledge: latents as a vector or as a
    factorised matrix, combined by addition, multiplication or concatenation. On more tasks: Chang et
    al. 2023, arXiv:2309.16921.
    Departures: the paper's text was not at hand; the latents stand before the heads only, where YOLOR has them in
    several places of a detector.
    Cost: B x width for each named task; concatenation B x width x (width + latent) more.
    """

    class Options(SharingOptions):
        """Attributes: combine; bases, how many vectors the tasks mix (None: each has its own); deviation at the start
        (from 1 where latents multiply, else from 0).
        """

        kind: Literal["yolor"] = "yolor"
        combine: Literal["add", "multiply", "concatenate"] = "multiply"
        bases: PositiveInt | None = None
        deviation: float = Field(default=0.02, ge=0)

    def __init__(self, make_encoder: MakeEncoder, tasks: Iterable[str], options: Options, seed: int = 0) -> None:
        super().__init__(make_encoder, tasks, options, seed)
        self.combine = options.combine
        self.encoder = make_encoder()
        self.width = self.encoder.width
        self.bases, self.join = None, None
        with seeded(seed, "shared latents"):
            if options.bases is not None:
                self.bases = nn.Parameter(torch.randn(options.bases, self.width) * options.deviation)
            if options.combine == "concatenate":
                self.join = nn.Linear(2 * self.width, self.width)
        self.latents: TaskModules[Latent] = TaskModules()
        for task in tasks:
            with seeded(seed, "latent", task):
                deviation = options.deviation if options.bases is None else 1.0
                self.latents[task] = Latent(options.bases or self.width, deviation)

    def condition(self, task: str) -> str:
        met = {"add": "added to", "multiply": "multiplied with", "concatenate": "joined to"}[self.combine]
        mixed = "" if self.bases is None else f", mixed from {len(self.bases)}"
        return f"a latent of {self.encoder.width}{mixed}, {met} what the encoder gives"

    def representation(self, inputs: Mapping[str, Tensor]) -> Float[Tensor, "B d"]:
        """The encoder's output, explicit knowledge."""
        return self.encoder(inputs)

    def features(self, representation: Float[Tensor, "B d"], tasks: list[str]) -> dict[str, Tensor]:
        return {task: self._combined(representation, self._latent(task)) for task in tasks}

    def _latent(self, task: str) -> Float[Tensor, "d"]:
        own = self.latents[task].vector
        own = own if self.bases is None else own @ self.bases
        return own + 1 if self.combine == "multiply" else own

    def _combined(self, z: Float[Tensor, "B d"], latent: Float[Tensor, "d"]) -> Float[Tensor, "B d"]:
        latent = latent.to(z.dtype)
        if self.combine == "add":
            return z + latent
        if self.join is None:
            return z * latent
        return self.join(torch.cat([z, latent.expand_as(z)], dim=1))


class Latent(nn.Module):
    """A task's numbers, around 0."""

    def __init__(self, width: int, deviation: float) -> None:
        super().__init__()
        self.vector = nn.Parameter(torch.randn(width) * deviation)
