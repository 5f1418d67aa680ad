"""Which parameters are weights of layers whose gradient is a product, found in the autograd graph.

The gradient of a linear layer's weight is D^T X: X are the layer's inputs, which the graph has saved, and D the
gradients of its outputs, which a backward pass gives without forming that product. A convolution is such a layer on
patches, an embedding on one-hot rows. A weight may be used more than once in a step; its rows are those of all uses.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from polytask.balancing.graph import Walk

Kind = Literal["linear", "convolution", "embedding"]

# (node of the graph, argument, whether the parameter arrives transposed) -> what the layer is
_WEIGHTS: dict[tuple[str, int, bool], Kind] = {
    ("AddmmBackward0", 2, True): "linear",
    ("MmBackward0", 1, True): "linear",
    ("ConvolutionBackward0", 1, False): "convolution",
    ("EmbeddingBackward0", 0, False): "embedding",
}
_BIASES = (("AddmmBackward0", 0, False), ("ConvolutionBackward0", 2, False))
_INPUTS = {
    "AddmmBackward0": "_saved_mat1",
    "MmBackward0": "_saved_self",
    "ConvolutionBackward0": "_saved_input",
    "EmbeddingBackward0": "_saved_indices",
}

End = tuple[Any, int, bool]


@dataclass(frozen=True)
class Patches:
    """How a convolution cuts its input [rows, channels, *sizes]; one a position of its output."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]

    def of(self, inputs: Tensor) -> Tensor:
        """[rows x positions, channels x kernel]."""
        if len(self.kernel) == 1:
            flat = Patches((1, *self.kernel), (1, *self.stride), (0, *self.padding), (1, *self.dilation))
            return flat.of(inputs.unsqueeze(2))
        cut = nn.functional.unfold(inputs, self.kernel, self.dilation, self.padding, self.stride)
        return cut.transpose(1, 2).flatten(0, 1)


@dataclass(frozen=True)
class Use:
    """One use of a weight in the forward pass.

    Attributes:
        node: of the graph; its first output is the layer's.
        mask: bitmask of the losses that depend on it.
        rows: how many rows its product has.
        patches: of a convolution.
    """

    node: Any
    mask: int
    rows: int
    patches: Patches | None

    @property
    def inputs(self) -> Tensor:
        """What the forward pass gave to the layer, as the graph saved it, until a backward pass frees it."""
        return getattr(self.node, _INPUTS[self.node.name()]).detach()

    @property
    def is_packed(self) -> bool:
        """Whether the graph does not hold the inputs as they were, but makes them anew each time that they are read.

        So do hooks on saved tensors: activation checkpointing computes a whole block again, others read from elsewhere.
        """
        raw = getattr(self.node, _INPUTS[self.node.name()].replace("_saved", "_raw_saved"))
        if hasattr(raw, "unpack_hook"):
            return raw.unpack_hook is not None
        once, again = self.inputs, self.inputs  # both held, or the second could lie where the first was
        return once.data_ptr() != again.data_ptr()


@dataclass(frozen=True)
class Layer:
    """A weight, with its bias where that has the same uses.

    Attributes:
        kind: linear, convolution or embedding.
        weight, bias: names of the parameters.
        uses: where it is used.
        fan_in: the width of a row; of an embedding, the number of its vectors.
        outputs: the width of a row of the output.
    """

    kind: Kind
    weight: str
    bias: str | None
    uses: list[Use]
    fan_in: int
    outputs: int

    @property
    def rows(self) -> int:
        """Over all uses: of a linear layer's input, patches of a convolution, indices of an embedding."""
        return sum(use.rows for use in self.uses)

    @property
    def names(self) -> list[str]:
        return [self.weight] if self.bias is None else [self.weight, self.bias]


def found_layers(walk: Walk, parameters: Mapping[str, Tensor]) -> list[Layer]:
    """The layers among these parameters; others are used in other ways, or a hook changes their gradient."""
    users = walk.users()
    leaves = {node.variable: node for node in walk.masks if hasattr(node, "variable")}
    ends = {
        name: _ends(leaves[parameter], users)
        for name, parameter in parameters.items()
        if parameter in leaves and not parameter._backward_hooks
    }
    biases = {
        tuple(id(node) for node, _, _ in found): name
        for name, found in ends.items()
        if all(_key(end) in _BIASES for end in found) and parameters[name].dim() == 1
    }
    layers = []
    for name, found in ends.items():
        kinds = [_WEIGHTS.get(_key(end)) for end in found]
        if kinds[0] is None or kinds.count(kinds[0]) < len(kinds) or not all(_is_plain(end[0]) for end in found):
            continue
        weight, bias = parameters[name], biases.get(tuple(id(node) for node, _, _ in found))
        uses = [_use(node, walk.masks[node], weight) for node, _, _ in found]
        width, outputs = (len(weight), weight.shape[1]) if kinds[0] == "embedding" else (weight[0].numel(), len(weight))
        layers.append(Layer(kinds[0], name, bias, uses, width, outputs))
    return layers


def _key(end: End) -> tuple[str, int, bool]:
    return end[0].name(), end[1], end[2]


def _ends(node: Any, users: Mapping[Any, Sequence[tuple[Any, int]]], transposed: bool = False) -> list[End]:
    """Where a parameter goes in, behind changes of type (autocast) and transpositions."""
    ends: list[End] = []
    for user, position in users.get(node, ()):
        if user.name() in ("ToCopyBackward0", "TBackward0"):
            ends += _ends(user, users, transposed != (user.name() == "TBackward0"))
        else:
            ends.append((user, position, transposed))
    return ends


def _is_plain(node: Any) -> bool:
    """Whether the weight's gradient is the product and no more."""
    if node.name() == "AddmmBackward0":
        return node._saved_alpha == 1 and node._saved_beta == 1
    if node.name() == "ConvolutionBackward0":
        return not node._saved_transposed and node._saved_groups == 1 and len(node._saved_stride) in (1, 2)
    if node.name() == "EmbeddingBackward0":
        return not node._saved_scale_grad_by_freq
    return True


def _use(node: Any, mask: int, weight: Tensor) -> Use:
    shape = node._input_metadata[0].shape  # of the layer's output, whose gradient is the node's input
    if node.name() == "EmbeddingBackward0":
        return Use(node, mask, math.prod(shape[:-1]), None)
    if node.name() != "ConvolutionBackward0":
        return Use(node, mask, shape[0], None)
    patches = Patches(
        tuple(weight.shape[2:]),
        tuple(node._saved_stride),
        tuple(node._saved_padding),
        tuple(node._saved_dilation),
    )
    return Use(node, mask, shape[0] * math.prod(shape[2:]), patches)
