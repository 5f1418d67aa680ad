"""What architectures of task tokens and queries compute, a row, a token and a head at a time."""

from collections.abc import Callable
from typing import Any

import torch
from tests.sharing.conditioning_references import column_tokens
from tests.sharing.dense_references import attended, block, convolved, fused, gelu, levels_of, shown, sized
from tests.sharing.references import TASKS, Tensors, linear, normalised
from torch import Tensor


def everything(place: int) -> Any:
    return slice(None)


def crossed(tensors: Tensors, name: str, x: Tensor, source: Tensor, seen: Callable[[int], Any] = everything) -> Tensor:
    """Two heads; token i of x, [N, d], reads those of the source in seen(i)."""
    q = linear(tensors, f"{name}.queries", normalised(tensors, f"{name}.own_norm", x))
    k, v = linear(tensors, f"{name}.keys_values", normalised(tensors, f"{name}.source_norm", source)).chunk(2, 1)
    read, half = torch.zeros_like(x), x.shape[1] // 2
    for head in (slice(0, half), slice(half, 2 * half)):
        for place in range(len(x)):
            weights = (k[seen(place)][:, head] @ q[place, head] / half**0.5).softmax(0)
            read[place, head] = weights @ v[seen(place)][:, head]
    return x + linear(tensors, f"{name}.outwards", read)


def through(tensors: Tensors, name: str, x: Tensor) -> Tensor:
    inner = gelu(linear(tensors, f"{name}.network.0", normalised(tensors, f"{name}.network_norm", x)))
    return x + linear(tensors, f"{name}.network.3", inner)


def three_layers(tensors: Tensors, name: str, x: Tensor) -> Tensor:
    inner = linear(tensors, f"{name}.2", linear(tensors, f"{name}.0", x).clamp(min=0)).clamp(min=0)
    return linear(tensors, f"{name}.4", inner)


# ---- FaceXFormer


def two_ways(tensors: Tensors, values: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """The tasks' tokens and one row's, [L, d], after two layers."""
    own = torch.stack([tensors[f"sharing.tokens.{task}.vector"] for task in TASKS])
    for layer in (0, 1):
        name = f"sharing.layers.{layer}"
        own = attended(tensors, name, own, everything)
        own = crossed(tensors, f"{name}.reading", own, values)
        own = through(tensors, name, own)
        values = crossed(tensors, f"{name}.answering", values, own)
    last = normalised(tensors, "sharing.norm", crossed(tensors, "sharing.last", own, values))
    return dict(zip(TASKS, last, strict=True)), values


def facexformer_reference(tensors: Tensors, inputs: Tensors, task: str) -> Tensor:
    return torch.stack([two_ways(tensors, row)[0][task] for row in column_tokens(tensors, inputs)])


def facexformer_on_a_pyramid_reference(tensors: Tensors, inputs: Tensors, task: str) -> Tensor:
    maps, rows = fused(tensors, "sharing.fusion", levels_of(tensors, inputs)), []
    for row in maps:
        own, values = two_ways(tensors, row.flatten(1).T + tensors["sharing.places.vectors"])
        enlarged = block(tensors, "sharing.enlarging", values.T.reshape(1, *row.shape))[0]
        rows.append(enlarged * three_layers(tensors, f"sharing.vectors.{task}", own[task])[:, None, None])
    return shown(torch.stack(rows), task)


# ---- OneFormer


def asked(
    tensors: Tensors, name: str, queries: Tensor, source: Tensor, seen: Callable[[int], Any] = everything
) -> Tensor:
    queries = attended(tensors, f"{name}.among", crossed(tensors, f"{name}.reading", queries, source, seen), everything)
    return through(tensors, f"{name}.among", queries)


def oneformer_reference(tensors: Tensors, inputs: Tensors, task: str) -> Tensor:
    levels = levels_of(tensors, inputs)
    finest, read = fused(tensors, "sharing.pixels", levels), convolved(tensors, "sharing.pixels.laterals.1", levels[1])
    token, rows = tensors[f"sharing.tokens.{task}.vector"], []
    for pixels, level in zip(finest, read, strict=True):
        first = pixels.flatten(1).T + tensors["sharing.first_places.vectors"]
        queries = asked(tensors, "sharing.first_layers.0", token + tensors["sharing.query_places"], first)
        queries = torch.cat([queries, token[None]])
        source = level.flatten(1).T + tensors["sharing.places.0.vectors"]
        for layer in (0, 1):
            inside = sized(masks_of(tensors, queries, pixels)[None], (2, 3))[0].flatten(1) >= 0
            inside[~inside.any(1)] = True
            queries = asked(tensors, f"sharing.layers.{layer}", queries, source, inside.__getitem__)
        classes, total = normalised(tensors, "sharing.norm", queries), torch.zeros_like(pixels)
        for mask, vector in zip(masks_of(tensors, queries, pixels), classes, strict=True):
            total = total + vector[:, None, None] / (1 + (-mask).exp()) / len(queries) ** 0.5
        rows.append(total)
    return shown(torch.stack(rows), task)


def masks_of(tensors: Tensors, queries: Tensor, pixels: Tensor) -> Tensor:
    made = three_layers(tensors, "sharing.masks", normalised(tensors, "sharing.norm", queries))
    asks = normalised(tensors, "sharing.masks.5", made)
    return torch.stack([sum((ask[c] * pixels[c] for c in range(len(ask))), torch.zeros(1)) for ask in asks])


TOKEN_REFERENCES: dict[str, Callable[[Tensors, Tensors, str], Tensor]] = {
    "facexformer": facexformer_reference,
    "facexformer on a pyramid": facexformer_on_a_pyramid_reference,
    "oneformer": oneformer_reference,
}
