"""What `text_to_text` computes, written without the code under test: a row, a question and an answer at a time."""

import math
from collections.abc import Callable

import torch
from tests.sharing.conditioning_references import column_tokens
from tests.sharing.dense_references import SIZES, convolved, levels_of, sized
from tests.sharing.references import Tensors, linear, normalised
from torch import Tensor

CENTRES = torch.tensor([-3.2, -1.6, 0.0, 1.6, 3.2], dtype=torch.float64)  # of five parts of [-4, 4]
LABELS = {"topic": ["0", "1", "2", "3"], "assays": ["0", "1", "2"]}


def place(number: int, width: int) -> Tensor:
    angles = [number / 10000 ** (2 * (column // 2) / width) for column in range(width)]
    return torch.tensor(
        [math.cos(a) if column % 2 else math.sin(a) for column, a in enumerate(angles)], dtype=torch.float64
    )


def attended(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Two heads; query by query."""
    half = q.shape[1] // 2
    found = torch.zeros_like(q)
    for head in (slice(0, half), slice(half, 2 * half)):
        for row in range(len(q)):
            found[row, head] = (k[:, head] @ q[row, head] / half**0.5).softmax(0) @ v[:, head]
    return found


def network(tensors: Tensors, name: str, x: Tensor) -> Tensor:
    inner = linear(tensors, f"{name}.network.0", normalised(tensors, f"{name}.network_norm", x))
    return x + linear(tensors, f"{name}.network.3", inner * (1 + torch.erf(inner / 2**0.5)) / 2)


def token_of(tensors: Tensors, text: str) -> Tensor:
    """One token of a whole text."""
    table = tensors["sharing.vocabulary.bytes"]
    x = torch.stack([table[byte] + place(at, table.shape[1]) for at, byte in enumerate([*text.encode(), 256])])
    name = "sharing.vocabulary.block"
    q, k, v = linear(tensors, f"{name}.inwards", normalised(tensors, f"{name}.attention_norm", x)).chunk(3, 1)
    x = network(tensors, name, x + linear(tensors, f"{name}.outwards", attended(q, k, v)))
    return normalised(tensors, "sharing.vocabulary.norm", x.mean(0))


def continued(tensors: Tensors, tokens: list[Tensor], memory: Tensor) -> Tensor:
    """What the decoder has at the last of these tokens of an answer, each of which reads those before it."""
    x = torch.stack([token + place(at, len(token)) for at, token in enumerate(tokens)])
    for layer in (0, 1):
        name = f"sharing.decoder.layers.{layer}"
        q, k, v = linear(tensors, f"{name}.own.inwards", normalised(tensors, f"{name}.own.attention_norm", x)).chunk(
            3, 1
        )
        own = torch.cat([attended(q[at : at + 1], k[: at + 1], v[: at + 1]) for at in range(len(x))])
        x = x + linear(tensors, f"{name}.own.outwards", own)
        q = linear(tensors, f"{name}.memory.queries", normalised(tensors, f"{name}.memory_norm", x))
        k, v = linear(tensors, f"{name}.memory.keys_values", memory).chunk(2, 1)
        x = network(tensors, name, x + linear(tensors, f"{name}.memory.outwards", attended(q, k, v)))
    return normalised(tensors, "sharing.decoder.norm", x)[-1]


def next_token(tensors: Tensors, tokens: list[Tensor], memory: Tensor, choices: Tensor) -> Tensor:
    """Log-probabilities of these tokens."""
    hidden = continued(tensors, tokens, memory)
    return (choices @ hidden / len(hidden) ** 0.5).log_softmax(0)


def spelled(tensors: Tensors, start: Tensor, text: str, memory: Tensor) -> Tensor:
    """The log-probability of a text among all texts, byte by byte."""
    table, tokens, total = tensors["sharing.vocabulary.bytes"], [start], start.new_zeros(())
    for byte in [*text.encode(), 256]:
        total = total + next_token(tensors, tokens, memory, table)[byte]
        tokens.append(table[byte])
    return total


def answered(tensors: Tensors, task: str, start: Tensor, memory: Tensor) -> Tensor:
    """A row's, or a point's, outputs: a number of five bins, or the log-probabilities of the labels."""
    if task == "click":
        return next_token(tensors, [start], memory, tensors["sharing.vocabulary.bins"]).exp() @ CENTRES
    return next_token(tensors, [start], memory, torch.stack([token_of(tensors, text) for text in LABELS[task]]))


def memory_of(tensors: Tensors, tokens: Tensor) -> Tensor:
    return normalised(tensors, "sharing.memory_norm", linear(tensors, "sharing.inwards", tokens))


def text_to_text_reference(tensors: Tensors, inputs: Tensors, task: str) -> Tensor:
    start = token_of(tensors, task)
    rows = column_tokens(tensors, inputs)
    return torch.stack([answered(tensors, task, start, memory_of(tensors, row)) for row in rows])


def on_pictures_reference(tensors: Tensors, inputs: Tensors, task: str) -> Tensor:
    """A point at each pixel of the finest map; what it begins with is the task's token and the maps' sum there."""
    levels, start = levels_of(tensors, inputs), token_of(tensors, task)
    finest = levels[0].shape[2:]
    maps = sum(sized(convolved(tensors, f"sharing.points.laterals.{n}", x), finest) for n, x in enumerate(levels))
    points = normalised(tensors, "sharing.points.norm", maps.movedim(1, -1))
    tokens = levels[1].flatten(2).mT + tensors["sharing.points.places.vectors"]
    found = torch.stack(
        [
            torch.stack([answered(tensors, task, start + point, memory_of(tensors, row)) for point in of.flatten(0, 1)])
            for row, of in zip(tokens, points, strict=True)
        ]
    ).unflatten(1, tuple(finest))
    wide = found.unsqueeze(1) if task == "click" else found.movedim(-1, 1)
    large = sized(wide, SIZES[task])
    return large.squeeze(1) if task == "click" else large.movedim(1, -1)


TEXT_REFERENCES: dict[str, Callable[[Tensors, Tensors, str], Tensor]] = {
    "text_to_text": text_to_text_reference,
    "text_to_text on a pyramid": on_pictures_reference,
}
