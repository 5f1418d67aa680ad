"""Masks that are learned: which elements of what fine-tuning changed are merged, by descent on a number an element.

A mask is made of logits x. The relaxed Bernoulli ("Concrete") variable of Maddison et al. 2017, arXiv:1611.00712, at
temperature t is sigmoid((x + log(u / (1 - u))) / t) with u uniform in (0, 1); without noise (u = 1/2) it is
sigmoid(x / t).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from polytask.core.noise import Noise
from polytask.merging.composing import Composition
from polytask.merging.vectors import Vectors

MakeMask = Callable[[str, Tensor], Tensor]
"""(tensor's name, its logits) -> the mask."""


@dataclass(frozen=True)
class Masked(Composition):
    """base + mask * (inner weight - base); tensors without logits are the inner ones.

    Attributes:
        vectors: whose base it is.
        inner: what is masked.
        logits: tensor -> leaf of its shape.
        make: the mask.
    """

    vectors: Vectors
    inner: Composition
    logits: Mapping[str, Tensor]
    make: MakeMask

    def leaves(self, name: str) -> tuple[Tensor, ...]:
        return (*self.inner.leaves(name), *([self.logits[name]] if name in self.logits else []))

    def weight(self, name: str, leaves: Sequence[Tensor]) -> Tensor:
        if name not in self.logits:
            return self.inner.weight(name, leaves)
        *inner, logits = leaves
        base = self.vectors.base(name)
        return base + self.make(name, logits) * (self.inner.weight(name, inner) - base)


@dataclass(frozen=True)
class Given(Composition):
    """Weights that are there; nothing is learned in them."""

    tensors: Mapping[str, Tensor]

    def leaves(self, name: str) -> tuple[()]:
        return ()

    def weight(self, name: str, leaves: Sequence[Tensor]) -> Tensor:
        return self.tensors[name]


def logits_for(vectors: Vectors, names: Sequence[str], start: float = 0.0) -> dict[str, Tensor]:
    """Leaves, float32, in the tensors' shapes."""
    return {name: torch.full(vectors.shape(name), start, requires_grad=True) for name in names}


def concrete(logits: Tensor, temperature: float, noise: Tensor | None = None) -> Tensor:
    """The relaxed mask; without noise its median."""
    return ((logits if noise is None else logits + noise) / temperature).sigmoid()


def logistic(vectors: Vectors, names: Sequence[str], noise: Noise) -> dict[str, Tensor]:
    """log(u / (1 - u)) of every element, the same whenever it is drawn."""
    found: dict[str, Tensor] = {}
    for name in names:
        u = np.clip(noise.child(name).uniform(vectors.elements(name)), 1e-7, 1 - 1e-7)
        found[name] = torch.from_numpy(np.log(u) - np.log1p(-u)).float().view(vectors.shape(name))
    return found


def of_unit_mean(mask: Tensor) -> Tensor:
    """The mask over its mean, so that what it leaves out does not make the rest shorter; one of zeros stays."""
    mean = mask.mean()
    return mask / mean if bool(mean.detach() > 0) else mask
