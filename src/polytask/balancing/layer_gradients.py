"""The tasks' gradients of one layer, kept as gradients of its outputs: their inner products, and their weighted sum."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from polytask.balancing.layers import Layer
from polytask.core import geometry
from polytask.core.task_vectors import weighted_sum

_BLOCK = 64  # rows of X X^T that are formed at once
NewBuffer = Callable[[str, Sequence[int], Tensor], Tensor]


class ProductGradients:
    """Of a linear layer or a convolution: for each task D_t [rows, outputs], beside X [rows, fan-in].

    Args:
        layer: what it is.
        parameters: its weight, and its bias if it has one.
        tasks: how many.
        new_buffer: (name, shape, like) -> memory that is kept from step to step.
    """

    def __init__(self, layer: Layer, parameters: Sequence[Tensor], tasks: int, new_buffer: NewBuffer) -> None:
        self.layer, self._parameters = layer, dict(zip(layer.names, parameters, strict=True))
        self._saved = [use.inputs for use in layer.uses]  # now: the last backward pass frees the graph
        weight = parameters[0]
        self._type = torch.promote_types(weight.dtype, torch.float32)
        self._deltas = new_buffer(layer.weight, (tasks, layer.rows, layer.outputs), weight.new_empty(0).to(self._type))
        self._inputs: Tensor | None = None

    def write(self, row: int, deltas: Sequence[Tensor | None]) -> None:
        """A task's gradients of the layer's outputs, one a use; None where the task does not reach."""
        start = 0
        for use, delta in zip(self.layer.uses, deltas, strict=True):
            part = self._deltas[row, start : start + use.rows]
            start += use.rows
            if delta is None:
                part.zero_()
            elif use.patches is None:
                part.copy_(delta)
            else:  # [rows, channels, *positions] of a convolution
                channels_last = delta.movedim(1, -1)
                part.view(channels_last.shape).copy_(channels_last)

    def grams(self, *, together: bool) -> dict[str, Tensor]:
        found = {
            self.layer.weight: product_gram(self.inputs, self._deltas, ones=together and len(self.layer.names) > 1)
        }
        if self.layer.bias is not None and not together:
            found[self.layer.bias] = geometry.gram(self._deltas.sum(1))
        return found

    def combined(self, weights: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        """Parameter -> the weighted sum of the tasks' gradients, for these of the layer's."""
        deltas = weighted_sum(self._deltas, weights)
        found = {}
        for name in names:
            parameter = self._parameters[name]
            grad = deltas.T @ self.inputs if name == self.layer.weight else deltas.sum(0)
            found[name] = grad.view(parameter.shape).to(parameter.dtype)
        return found

    @property
    def inputs(self) -> Tensor:
        """X, in the precision of the products."""
        if self._inputs is None:
            uses = zip(self.layer.uses, self._saved, strict=True)
            parts = [saved if use.patches is None else use.patches.of(saved) for use, saved in uses]
            self._inputs = (parts[0] if len(parts) == 1 else torch.cat(parts)).to(self._type)
        return self._inputs


class EmbeddingGradients:
    """Of an embedding: for each task the gradients of those of its vectors that the step has looked up; arguments as
    for `ProductGradients`."""

    def __init__(self, layer: Layer, parameters: Sequence[Tensor], tasks: int, new_buffer: NewBuffer) -> None:
        self.layer, self._parameter = layer, parameters[0]
        # all that the graph has saved is read now: the last backward pass frees it
        indices = [use.inputs.flatten() for use in layer.uses]
        self._padding = [found == use.node._saved_padding_idx for use, found in zip(layer.uses, indices, strict=True)]
        self._sparse = all(use.node._saved_sparse for use in layer.uses)
        self._rows, inverse = torch.cat(indices).unique(return_inverse=True)
        self._places = inverse.split([use.rows for use in layer.uses])
        like = self._parameter.new_empty(0).to(torch.promote_types(self._parameter.dtype, torch.float32))
        self._stack = new_buffer(layer.weight, (tasks, layer.rows, layer.outputs), like)[:, : len(self._rows)]

    def write(self, row: int, deltas: Sequence[Tensor | None]) -> None:
        stack = self._stack[row].zero_()
        for places, padding, delta in zip(self._places, self._padding, deltas, strict=True):
            if delta is not None:
                flat = delta.reshape(len(places), -1).to(stack.dtype)
                stack.index_add_(0, places, flat.masked_fill(padding[:, None], 0.0) if padding.any() else flat)

    def grams(self, *, together: bool) -> dict[str, Tensor]:
        return {self.layer.weight: geometry.gram(self._stack)}

    def combined(self, weights: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        values = weighted_sum(self._stack, weights).to(self._parameter.dtype)
        shape = self._parameter.shape
        if self._sparse:
            sparse = torch.sparse_coo_tensor(self._rows[None], values, shape, is_coalesced=True, check_invariants=False)
            return dict.fromkeys(names, sparse)
        return dict.fromkeys(names, values.new_zeros(shape).index_copy_(0, self._rows, values))


LayerGradients = ProductGradients | EmbeddingGradients


def product_gram(
    inputs: Float[Tensor, "rows fan_in"], deltas: Float[Tensor, "T rows outputs"], *, ones: bool = False
) -> Float[Tensor, "T T"]:
    """Inner products of D_i^T X and D_j^T X, which are not formed; float64 on the CPU.

    They are the sum over rows n, m of K[n, m] <D_i[n], D_j[m]>, K = X X^T. K is a triangle S plus its transpose, so
    they are M + M^T with M[i, j] = <D_i, S D_j>, which is half of the products. Blocks in the tensors' precision are
    summed in float64. Where rounding could be more than the products formed directly would have, or a square leaves the
    range, all is done once more in float64.

    Args:
        inputs: X.
        deltas: D, a task a row.
        ones: whether X has a column of ones besides (a bias).
    """
    gram, square, lengths = _triangular(inputs, deltas, ones=ones)
    if inputs.dtype == torch.float64 or _is_accurate(gram, square, lengths, deltas, inputs.shape[1]):
        return gram
    return _triangular(inputs.double(), deltas.double(), ones=ones)[0]


def _triangular(inputs: Tensor, deltas: Tensor, *, ones: bool) -> tuple[Tensor, Tensor, Tensor]:
    """(G, |X|^2, |D_t| of each task)."""
    tasks, rows, _ = deltas.shape
    total = torch.zeros(tasks, tasks, dtype=torch.float64, device=deltas.device)
    square = torch.zeros((), dtype=torch.float64, device=deltas.device)
    for start in range(0, rows, _BLOCK):
        end = min(start + _BLOCK, rows)
        block = inputs[start:end] @ inputs[:end].T
        if ones:
            block += 1
        square += block[:, start:].diagonal().sum()
        block[:, start:] *= 0.5
        total += deltas[:, start:end].flatten(1) @ torch.matmul(block, deltas[:, :end]).flatten(1).T
    lengths = torch.linalg.vector_norm(deltas.flatten(1), dim=1)
    return (total + total.T).cpu(), square.cpu(), lengths.double().cpu()


def _is_accurate(gram: Tensor, square: Tensor, lengths: Tensor, deltas: Tensor, fan_in: int) -> bool:
    """Whether single precision served: nothing left its range, and few enough rows cancel.

    The error is about eps |X|^2 |D|^2 / sqrt(rows), since that of each row is independent; products formed directly are
    allowed eps G sqrt(fan-in x outputs).
    """
    _, rows, outputs = deltas.shape
    in_range = 1e-20 < float(square) < 1e30 and bool(((lengths == 0) | ((lengths > 1e-10) & (lengths < 1e15))).all())
    seen = gram.diagonal() * (rows * fan_in * outputs) ** 0.5 >= square * lengths * lengths
    empty = (lengths == 0).nonzero()[:, 0].to(deltas.device)  # no gradient, or squares too small to be seen
    return in_range and bool(seen.all()) and not bool(deltas[empty].any())
