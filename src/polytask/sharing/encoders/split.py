"""Runs the lower or the upper layers of a Hugging Face model by themselves, whatever its architecture.

The model's own forward pass is used, so attention masks and positions are made as the architecture makes them: for the
lower layers it is left when it reaches the first layer that is not wanted; for the upper ones it runs on a shallow copy
whose list of layers is shorter and whose embeddings give back what they are given. No parameter is copied.
"""

import copy
from typing import Any

from torch import Tensor, nn

from polytask.core.errors import BadValue


def find_layers(model: Any, layers: int) -> tuple[str, nn.ModuleList]:
    """The model's list of transformer layers and its place in the model."""
    for place, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == layers:
            return place, module
    kind = type(model).__name__
    raise BadValue(f"trainable layers of {kind}", f"no list of its {layers} layers", "trainable: all or none")


def lower(model: Any, layers: int, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """[B, L, d]: what the first `layers` layers make of the tokens; layers=0: the embeddings."""
    _, every = find_layers(model, model.config.num_hidden_layers)
    hook = every[layers].register_forward_pre_hook(_stop, with_kwargs=True)
    try:
        model(input_ids=input_ids, attention_mask=attention_mask)
    except _Reached as reached:
        return reached.hidden
    finally:
        hook.remove()
    raise BadValue(f"layer {layers} of {type(model).__name__}", "not called", "a layer that the forward pass calls")


def upper(model: Any, layers: int, hidden: Tensor, attention_mask: Tensor) -> Tensor:
    """[B, L, d]: what the layers after the first `layers` make of those layers' output."""
    place, every = find_layers(model, model.config.num_hidden_layers)
    part = _with_layers(model, place, list(every)[layers:])
    part.embeddings = _Given(hidden)
    return part(inputs_embeds=hidden, attention_mask=attention_mask).last_hidden_state


def _with_layers(model: Any, place: str, layers: list[nn.Module]) -> Any:
    """A shallow copy of the model with other layers at `place`; every other module is the model's own."""
    view = parent = _shallow(model)
    *path, last = place.split(".")
    for name in path:
        parent._modules[name] = _shallow(parent._modules[name])
        parent = parent._modules[name]
    parent._modules[last] = nn.ModuleList(layers)
    return view


def _shallow(module: Any) -> Any:
    twin = copy.copy(module)
    twin._modules = dict(module._modules)
    return twin


class _Reached(Exception):
    """Not an error: it ends a forward pass early."""

    def __init__(self, hidden: Tensor) -> None:
        super().__init__()
        self.hidden = hidden


def _stop(layer: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
    raise _Reached(arguments[0] if arguments else named["hidden_states"])


class _Given(nn.Module):
    """Stands where the embeddings would: hidden states are already there."""

    def __init__(self, hidden: Tensor) -> None:
        super().__init__()
        self.hidden = hidden

    def forward(self, *arguments: object, **named: object) -> Tensor:
        return self.hidden
