"""Feature pyramids: what an encoder of several maps is, and the adapters of timm's and Hugging Face's models.

An encoder that gives a pyramid has the attributes `gives = "pyramid"`, `channels` and `strides` (a number a map, finest
map first), and `forward(inputs) -> [[B, channels[0], h0, w0], ...]` with h_i = height / strides[i], rounded up or down.
When a model is built its `size`, `shapes` and `width` are found by running it: those of the image and of the maps, and
how many numbers a row's maps have in all.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from polytask.core.errors import BadValue, MissingInput
from polytask.core.inputs import InputSchema

Levels = list[Tensor]
"""The maps of a pyramid, [B, channels, height, width] each, finest first."""


def checked_pyramid(encoder: nn.Module, maps: Any, schema: InputSchema, what: str) -> nn.Module:
    """The encoder with `size`, `shapes` and `width`; BadValue where its maps are not what it says."""
    channels, strides = _numbers(encoder, "channels"), _numbers(encoder, "strides")
    if not channels or len(channels) != len(strides):
        found = [getattr(encoder, "channels", None), getattr(encoder, "strides", None)]
        raise BadValue(f"{what}: channels and strides", found, "a number above 0 a map in each")
    if list(strides) != sorted(strides):
        raise BadValue(f"{what}: strides", list(strides), "the finest map first")
    height, width = _image_size(encoder, schema, what)
    if not isinstance(maps, list | tuple) or not all(isinstance(each, Tensor) for each in maps):
        raise BadValue(f"{what}: output", type(maps).__name__, "a list of maps [rows, channels, height, width]")
    found = [list(each.shape) for each in maps]
    said = [[2, c, -(-height // s), -(-width // s)] for c, s in zip(channels, strides, strict=True)]
    floored = [[2, c, height // s, width // s] for c, s in zip(channels, strides, strict=True)]
    fits = len(found) == len(said) and all(
        one[:2] == up[:2] and len(one) == 4 and one[2] in (up[2], down[2]) and one[3] in (up[3], down[3])
        for one, up, down in zip(found, said, floored, strict=True)
    )
    if not fits:
        raise BadValue(
            f"{what}: output for 2 rows of {height} x {width}", found, f"{said}, as channels and strides say"
        )
    if not all(each.is_floating_point() and min(each.shape[2:]) > 0 for each in maps):
        raise BadValue(f"{what}: output for 2 rows of {height} x {width}", found, "maps of floats, none of them empty")
    known: Any = encoder
    known.size, known.shapes = (height, width), [tuple(shape[1:]) for shape in found]
    known.width = sum(c * h * w for c, h, w in known.shapes)
    return encoder


def packed(levels: Levels) -> Float[Tensor, "B width"]:
    """All numbers of a row's maps, one map after the other: the representation that tasks share."""
    return torch.cat([each.flatten(1) for each in levels], dim=1)


def unpacked(representation: Float[Tensor, "B width"], shapes: Sequence[tuple[int, int, int]]) -> Levels:
    """The maps again."""
    parts = representation.split([c * h * w for c, h, w in shapes], dim=1)
    return [part.unflatten(1, shape) for part, shape in zip(parts, shapes, strict=True)]


class PyramidEncoder(nn.Module):
    """A module that gives maps, made an encoder by an adapter below.

    Args:
        module: called with the image; `read` makes the maps of what it returns.
        channels, strides: of the maps, finest first.
        key: the input that is the image.
    """

    gives = "pyramid"
    width: int

    def __init__(self, module: nn.Module, channels: Sequence[int], strides: Sequence[int], key: str) -> None:
        super().__init__()
        self.module, self.key = module, key
        self.channels, self.strides = tuple(channels), tuple(strides)

    def forward(self, inputs: Mapping[str, Tensor]) -> Levels:
        if self.key not in inputs:
            raise MissingInput(f"the model reads the input {self.key!r}; found: {', '.join(inputs) or 'none'}")
        return self.read(inputs[self.key])

    def read(self, image: Float[Tensor, "B C H W"]) -> Levels:
        return list(self.module(image))


class ChannelsLast(PyramidEncoder):
    """One whose module gives maps [B, height, width, channels]."""

    def read(self, image: Float[Tensor, "B C H W"]) -> Levels:
        return [each.permute(0, 3, 1, 2) for each in self.module(image)]


def timm_pyramid(model: nn.Module, key: str = "image") -> PyramidEncoder:
    """`timm.create_model(name, features_only=True)` as an encoder: `encoder=lambda: timm_pyramid(...)`.

    Some models of timm give their channels last (Swin, MambaOut), and say so: `model.output_fmt`.
    """
    about: Any = getattr(model, "feature_info", None)
    if about is None or not callable(getattr(about, "channels", None)):
        raise BadValue("timm_pyramid: model", type(model).__name__, "one made with features_only=True")
    layout: Any = getattr(model, "output_fmt", "NCHW")  # a string, or an enumeration of strings
    adapters = {"NCHW": PyramidEncoder, "NHWC": ChannelsLast}
    if layout not in adapters:
        found = getattr(layout, "value", layout)
        raise BadValue(f"timm_pyramid: what {type(model).__name__} gives", found, "maps: NCHW or NHWC")
    return adapters[layout](model, about.channels(), about.reduction(), key)


class HiddenStates(PyramidEncoder):
    """Some hidden states of a Hugging Face vision model: maps as they are, tokens of patches as maps."""

    def __init__(self, model: nn.Module, layers: Sequence[int], channels: list[int], strides: list[int], key: str):
        super().__init__(model, channels, strides, key)
        self.layers = tuple(layers)

    def read(self, image: Float[Tensor, "B C H W"]) -> Levels:
        hidden = self.module(pixel_values=image, output_hidden_states=True).hidden_states
        sides = [[side // stride for side in image.shape[2:]] for stride in self.strides]
        return [_as_map(hidden[layer], *sides[place]) for place, layer in enumerate(self.layers)]


def hidden_states_pyramid(
    model: nn.Module, layers: Sequence[int], strides: Sequence[int], key: str = "image"
) -> HiddenStates:
    """A Hugging Face vision model as an encoder: `encoder=lambda: hidden_states_pyramid(ViTModel(config), ...)`.

    Args:
        model: called with `pixel_values` and `output_hidden_states`; a ViT (tokens of patches, after those of classes
            and registers), or one whose hidden states are maps (ResNet, ConvNeXt).
        layers: which of `hidden_states`, finest first; strides: of each (a ViT's is its patch size).
    """
    config: Any = getattr(model, "config", None)
    sizes = getattr(config, "hidden_sizes", None)
    if not layers or len(layers) != len(strides):
        raise BadValue("hidden_states_pyramid: layers and strides", [list(layers), list(strides)], "as many of each")
    if isinstance(sizes, list | tuple) and hasattr(config, "embedding_size"):  # ResNet: the stem comes first
        sizes = [config.embedding_size, *sizes]
    elif isinstance(sizes, list | tuple):  # ConvNeXt: the stem is as wide as the first stage
        sizes = [sizes[0], *sizes]
    elif isinstance(getattr(config, "hidden_size", None), int):
        sizes = [config.hidden_size] * (config.num_hidden_layers + 1)
    else:
        raise BadValue(
            "hidden_states_pyramid: model", type(model).__name__, "one with config.hidden_size or hidden_sizes"
        )
    for layer in layers:
        if not -len(sizes) <= layer < len(sizes):
            raise BadValue("hidden_states_pyramid: layers", list(layers), f"places among {len(sizes)} hidden states")
    return HiddenStates(model, layers, [sizes[layer] for layer in layers], list(strides), key)


def _as_map(hidden: Tensor, height: int, width: int) -> Float[Tensor, "B d h w"]:
    if hidden.dim() == 4:
        return hidden
    return hidden[:, -height * width :].transpose(1, 2).unflatten(2, (height, width))


def _numbers(encoder: nn.Module, name: str) -> list[int]:
    """Of that attribute; none where it is anything but numbers above 0."""
    values: Any = getattr(encoder, name, None)
    fits = isinstance(values, list | tuple) and all(isinstance(each, int) and each > 0 for each in values)
    return list(values) if fits else []


def _image_size(encoder: nn.Module, schema: InputSchema, what: str) -> tuple[int, int]:
    """Height and width of the input that the encoder reads: `key`, else the only one with three axes."""
    key = getattr(encoder, "key", None)
    images = {name: shape for name, shape in schema.shapes.items() if len(shape) == 3 and key in (None, name)}
    if len(images) != 1:
        raise BadValue(f"{what}: what a pyramid is made of", dict(schema.shapes), "one image [channels, height, width]")
    (shape,) = images.values()
    return shape[1], shape[2]
