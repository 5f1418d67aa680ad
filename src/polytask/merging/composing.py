"""Weights that are composed when a model looks at them: base + coefficients x task vectors x masks, differentiable.

A composition makes one weight at a time from its leaves (coefficients, masks). `Composed` is a mapping from names to
such weights, and `substituted` puts any mapping in the place of a module's own tensors, which are left alone.

A weight lives as long as the layer that looks at it computes: autograd keeps its name instead of its values, and
composes it again in the backward pass. So memory is that of the models (mapped from their files), the leaves, one
layer's weights and the activations, not one model more. Where there is room for two models more, `hold` composes each
weight once for several passes, whose gradients at the weight are added up before they go on to the leaves (`pull`).
"""

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.autograd.graph import saved_tensors_hooks

from polytask.merging.vectors import Vectors


@runtime_checkable
class Composition(Protocol):
    """Makes weights from leaves; everything else that `weight` reads is constant."""

    def leaves(self, name: str) -> Sequence[Tensor]:
        """What the weight called `name` depends on."""
        ...

    def weight(self, name: str, leaves: Sequence[Tensor]) -> Tensor:
        """The weight, by ordinary differentiable operations on the leaves given."""
        ...

    def pulled(self, name: str, leaves: Sequence[Tensor], gradient: Tensor) -> Sequence[Tensor | None]:
        """The leaves' gradients, from the weight's: autograd's, unless a composition knows a shorter way."""
        own = [leaf.detach().requires_grad_() for leaf in leaves]
        with torch.enable_grad():
            weight = self.weight(name, own)
        if not weight.requires_grad:  # it depends on none of them
            return [None] * len(own)
        return torch.autograd.grad(weight, own, gradient.to(weight), allow_unused=True)


@dataclass(frozen=True)
class Scaled(Composition):
    """base + sum_t coefficients[t, g] * (model_t - base), where g is the tensor's group.

    Attributes:
        vectors: of the models.
        coefficients: [T, G].
        groups: tensor -> its column.
    """

    vectors: Vectors
    coefficients: Float[Tensor, "T G"]
    groups: Mapping[str, int]

    def leaves(self, name: str) -> tuple[Tensor]:
        return (self.coefficients[:, self.groups[name]],)

    def weight(self, name: str, leaves: Sequence[Tensor]) -> Tensor:
        (own,) = leaves
        differentiable = torch.is_grad_enabled() and own.requires_grad
        weight = self.vectors.base(name).clone()
        for row, task in enumerate(self.vectors.tasks):
            if self.vectors.has(task, name):
                change = self.vectors.row(task, name)
                if differentiable:
                    weight = weight + own[row].to(weight.dtype) * change
                else:
                    weight.add_(change, alpha=float(own[row]))
        return weight

    def pulled(self, name: str, leaves: Sequence[Tensor], gradient: Tensor) -> tuple[Tensor]:
        """Inner products of the weight's with the task vectors."""
        found = self.coefficients.new_zeros(len(self.vectors.tasks))
        for row, task in enumerate(self.vectors.tasks):
            if self.vectors.has(task, name):
                change = self.vectors.row(task, name)
                found[row] = (gradient.to(change).reshape(-1) @ change.reshape(-1)).to(found)
        return (found,)


class Composed(Mapping[str, Tensor]):
    """name -> weight, composed at each look unless somebody still holds the last one.

    Args:
        composition: what makes them.
        like: name -> a tensor whose type and device the weight gets.

    While it is held, the weights are leaves of autograd's graph; what they get is sent on by `pull`.

    `saved_bytes` counts what autograd has kept meanwhile; weights that it composes again are not among it.
    """

    def __init__(self, composition: Composition, like: Mapping[str, Tensor]) -> None:
        self.composition, self._like = composition, dict(like)
        self.saved_bytes = 0
        self._alive: weakref.WeakValueDictionary[str, Tensor] = weakref.WeakValueDictionary()
        self._held: dict[str, Tensor] | None = None

    def __getitem__(self, name: str) -> Tensor:
        like = self._like[name]
        if self._held is not None:
            if name not in self._held:
                with torch.no_grad():
                    made = _fresh(self.composition, name, like, [own.detach() for own in self.composition.leaves(name)])
                self._held[name] = made.requires_grad_()
            return self._held[name]
        weight = self._alive.get(name)
        if weight is None:
            weight = _Compose.apply(self.composition, name, like, *self.composition.leaves(name))
            self._alive[name] = weight
        return weight

    def __iter__(self) -> Iterator[str]:
        return iter(self._like)

    def __len__(self) -> int:
        return len(self._like)

    def hold(self) -> None:
        """From now on each weight is composed once."""
        self._held = {}

    def held(self) -> list[Tensor]:
        """The weights that were looked at since."""
        return list((self._held or {}).values())

    def pull(self, inputs: Sequence[Tensor]) -> None:
        """What the held weights got as gradients goes on to those of the leaves' origins that are `inputs`."""
        for name, weight in (self._held or {}).items():
            if weight.grad is not None:
                leaves = self.composition.leaves(name)
                found = self.composition.pulled(name, leaves, weight.grad)
                known = [
                    (leaf, own)
                    for leaf, own in zip(leaves, found, strict=True)
                    if own is not None and leaf.requires_grad
                ]
                if known:
                    starts, slopes = ([pair[i] for pair in known] for i in range(2))
                    torch.autograd.backward(starts, slopes, inputs=list(inputs))
                weight.grad = None

    def release(self) -> None:
        """Forgets the held weights."""
        self._held = None

    def remembering(self) -> AbstractContextManager[Any]:
        """A context in which autograd keeps the names of composed weights instead of their values; not of held ones."""
        return nullcontext() if self._held is not None else saved_tensors_hooks(self._pack, self._unpack)

    def _pack(self, tensor: Tensor) -> "Tensor | _View":
        storage = tensor.untyped_storage().data_ptr()
        for name, weight in self._alive.items():  # those of one layer: a weight goes when nothing uses it
            if tensor.numel() and weight.untyped_storage().data_ptr() == storage and tensor.dtype == weight.dtype:
                return _View(name, tensor.shape, tensor.stride(), int(tensor.storage_offset()))
        self.saved_bytes += tensor.numel() * tensor.element_size()
        return tensor

    def _unpack(self, kept: "Tensor | _View") -> Tensor:
        if isinstance(kept, Tensor):
            return kept
        with torch.no_grad():
            weight = _fresh(self.composition, kept.name, self._like[kept.name], self.composition.leaves(kept.name))
        return weight.as_strided(kept.shape, kept.stride, kept.offset)


@dataclass(frozen=True)
class _View:
    """What autograd keeps of a composed weight."""

    name: str
    shape: torch.Size
    stride: tuple[int, ...]
    offset: int


class _Compose(torch.autograd.Function):
    """A weight, whose composition is done again, with its graph, when its gradient is known."""

    @staticmethod
    def forward(context: Any, composition: Composition, name: str, like: Tensor, *leaves: Tensor) -> Tensor:
        context.composition, context.name = composition, name
        context.save_for_backward(*leaves)
        return _fresh(composition, name, like, leaves)

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, None, *context.composition.pulled(context.name, context.saved_tensors, gradient)


def _fresh(composition: Composition, name: str, like: Tensor, leaves: Sequence[Tensor]) -> Tensor:
    """The weight in its own memory, contiguous, in the type and on the device of `like`."""
    weight = composition.weight(name, leaves)
    return weight.to(like).clone(memory_format=torch.contiguous_format)


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, tied ones under each of theirs."""
    parameters = module.named_parameters(remove_duplicate=False)
    return {**dict(parameters), **dict(module.named_buffers(remove_duplicate=False))}


@contextmanager
def substituted(
    module: nn.Module, tensors: Mapping[str, Tensor], others: Mapping[str, Tensor] | None = None
) -> Iterator[None]:
    """The module computes with these tensors in the place of its own parameters and buffers of the same names.

    A tensor is looked up at the moment when the module uses it, as often as it does, and comes in the type and on the
    device of the module's own. One that the module has tied to a named one is replaced too. Buffers get no gradient.

    Args:
        module: left as it is.
        tensors: name -> tensor.
        others: the same, for names that are not among them.
    """
    others = others or {}
    of = {**dict.fromkeys(others, others), **dict.fromkeys(tensors, tensors)}
    named = {id(tensor): name for name, tensor in reversed(tensors_of(module).items()) if name in of}
    places: list[tuple[nn.Module, str, Any]] = []
    with tensors.remembering() if isinstance(tensors, Composed) else nullcontext():
        try:
            for part in module.modules():
                for kind in ("_parameters", "_buffers"):
                    own = part.__dict__[kind]
                    found = {key: named[id(tensor)] for key, tensor in own.items() if id(tensor) in named}
                    if found:
                        places.append((part, kind, own))
                        looks = {key: partial(_look, of[name], name, kind) for key, name in found.items()}
                        part.__dict__[kind] = _Substitutes(own, looks)
                if isinstance(part, nn.RNNBase):
                    places.append((part, "_flat_weights", part.__dict__["_flat_weights"]))
                    names: list[str] = part.__dict__["_flat_weights_names"]
                    part.__dict__["_flat_weights"] = [getattr(part, name) for name in names]
            yield
        finally:
            for part, kind, own in reversed(places):
                part.__dict__[kind] = own


def _look(tensors: Mapping[str, Tensor], name: str, kind: str) -> Tensor:
    return tensors[name] if kind == "_parameters" else tensors[name].detach()


class _Substitutes(dict[str, Any]):
    """A module's table of tensors in which a look at a name finds the substitute; a walk finds the module's own."""

    def __init__(self, own: Mapping[str, Any], looks: Mapping[str, Callable[[], Tensor]]) -> None:
        super().__init__(own)
        self._looks = looks

    def __getitem__(self, key: str) -> Any:
        own = super().__getitem__(key)
        if key not in self._looks:
            return own
        tensor = self._looks[key]()
        return tensor if (tensor.dtype, tensor.device) == (own.dtype, own.device) else tensor.to(own)


def group_columns(names: Sequence[str], key: Callable[[str], str]) -> dict[str, int]:
    """name -> the number of its group, counted in the order of the names."""
    order = {group: number for number, group in enumerate(dict.fromkeys(key(name) for name in names))}
    return {name: order[key(name)] for name in names}
