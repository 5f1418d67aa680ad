"""What architectures on a pyramid compute, written without the code under test: sums over the state_dict."""

import math
from collections.abc import Callable

import torch
from tests.sharing.references import TASKS, Tensors, linear, normalised
from torch import Tensor

PICTURE = (8, 12)
SIZES = {"click": (8, 12), "topic": (8, 12), "assays": (4, 6)}


def convolved(tensors: Tensors, name: str, x: Tensor, stride: int = 1) -> Tensor:
    weight = tensors[f"{name}.weight"]
    reach = weight.shape[2] // 2
    rows, _, height, width = x.shape
    wide = torch.zeros(rows, x.shape[1], height + 2 * reach, width + 2 * reach, dtype=x.dtype)
    wide[:, :, reach : reach + height, reach : reach + width] = x
    out = torch.zeros(rows, len(weight), -(-height // stride), -(-width // stride), dtype=x.dtype)
    for u in range(weight.shape[2]):
        for v in range(weight.shape[3]):
            seen = wide[:, :, u : u + height : stride, v : v + width : stride]
            out += torch.einsum("oc,bchw->bohw", weight[:, :, u, v], seen)
    bias = tensors.get(f"{name}.bias")
    return out if bias is None else out + bias[:, None, None]


def grouped(tensors: Tensors, name: str, x: Tensor) -> Tensor:
    """Group normalisation in as many of at most four groups as divide the channels."""
    parts = []
    for part in x.chunk(math.gcd(4, x.shape[1]), dim=1):
        mean = part.mean(dim=(1, 2, 3), keepdim=True)
        variance = (part - mean).square().mean(dim=(1, 2, 3), keepdim=True)
        parts.append((part - mean) / (variance + 1e-5).sqrt())
    scaled = torch.cat(parts, dim=1)
    return scaled * tensors[f"{name}.weight"][:, None, None] + tensors[f"{name}.bias"][:, None, None]


def block(tensors: Tensors, name: str, x: Tensor, stride: int = 1) -> Tensor:
    return grouped(tensors, f"{name}.1", convolved(tensors, f"{name}.0", x, stride)).clamp(min=0)


def between(old: int, new: int) -> Tensor:
    """[new, old]: linear between pixel centres, the border repeated."""
    weights = torch.zeros(new, old, dtype=torch.float64)
    for place in range(new):
        at = min(max((place + 0.5) * old / new - 0.5, 0), old - 1)
        low = min(int(at), old - 2) if old > 1 else 0
        weights[place, low] += 1 - (at - low)
        if old > 1:
            weights[place, low + 1] += at - low
    return weights


def sized(x: Tensor, size: tuple[int, ...]) -> Tensor:
    return torch.einsum("Hh,bchw,Ww->bcHW", between(x.shape[2], size[0]), x, between(x.shape[3], size[1]))


def levels_of(tensors: Tensors, inputs: Tensors, encoder: str = "sharing.encoder") -> list[Tensor]:
    one = block(tensors, f"{encoder}.levels.0.0", inputs["image"], 2)
    return [one, block(tensors, f"{encoder}.levels.1.0", one, 2)]


def decoded(tensors: Tensors, task: str, levels: list[Tensor]) -> Tensor:
    return fused(tensors, f"sharing.decoders.decoders.{task}", levels)


def fused(tensors: Tensors, name: str, levels: list[Tensor]) -> Tensor:
    total = torch.zeros(1, dtype=torch.float64)
    for level, x in enumerate(levels):
        total = total + sized(convolved(tensors, f"{name}.laterals.{level}", x), levels[0].shape[2:])
    return block(tensors, f"{name}.mix", grouped(tensors, f"{name}.norm", total).clamp(min=0))


def shown(maps: Tensor, task: str) -> Tensor:
    """What the head reads: of the task's resolution, a vector a pixel."""
    return sized(maps, SIZES[task]).movedim(1, -1)


def hard_reference(tensors: Tensors, inputs: Tensors, task: str) -> Tensor:
    return shown(decoded(tensors, task, levels_of(tensors, inputs)), task)


def film_reference(tensors: Tensors, inputs: Tensors, task: str) -> Tensor:
    """Each level of the encoder scaled and shifted for the task before the next reads it."""
    x, levels = inputs["image"], []
    for level in (0, 1):
        x, part = block(tensors, f"sharing.encoder.levels.{level}.0", x, 2), f"sharing.modulations.{task}.{level}"
        x = x * tensors[f"{part}.scale"][:, None, None] + tensors[f"{part}.shift"][:, None, None]
        levels.append(x)
    return shown(decoded(tensors, task, levels), task)


def single_reference(tensors: Tensors, inputs: Tensors, task: str) -> Tensor:
    return shown(decoded(tensors, task, levels_of(tensors, inputs, f"sharing.encoders.{task}")), task)


def mtan_reference(tensors: Tensors, inputs: Tensors, task: str) -> Tensor:
    masked: list[Tensor] = []
    for place, level in enumerate(levels_of(tensors, inputs)):
        name, read = f"sharing.attention.{task}.{place}", level
        if masked:
            onward = block(tensors, f"{name}.onward", masked[-1])
            read = torch.cat([level, sized(onward, level.shape[2:])], dim=1)
        scores = grouped(
            tensors, f"{name}.norm", convolved(tensors, f"{name}.outer", block(tensors, f"{name}.inner", read))
        )
        masked.append(level / (1 + (-scores).exp()))
    return shown(decoded(tensors, task, masked), task)


def pad_reference(tensors: Tensors, inputs: Tensors, task: str) -> Tensor:
    maps = {name: decoded(tensors, name, levels_of(tensors, inputs)) for name in TASKS}
    others = torch.cat([maps[name] for name in TASKS if name != task], dim=1)
    gate = 1 / (1 + (-convolved(tensors, f"sharing.gates.{task}", maps[task])).exp())
    return shown(maps[task] + gate * convolved(tensors, f"sharing.messages.{task}", others), task)


def medusa_reference(tensors: Tensors, inputs: Tensors, task: str) -> Tensor:
    name, maps = f"sharing.decoders.decoders.{task}", []
    for place, level in enumerate(levels_of(tensors, inputs)):
        mask = 1 / (1 + (-convolved(tensors, f"sharing.attention.{task}.{place}", level)).exp())
        maps.append(sized(block(tensors, f"{name}.laterals.{place}", level * mask), (4, 6)))
    scores = convolved(tensors, f"{name}.scores", torch.cat(maps, dim=1)).chunk(2, dim=1)
    whole = scores[0].exp() + scores[1].exp()
    mixed = scores[0].exp() / whole * maps[0] + scores[1].exp() / whole * maps[1]
    return shown(block(tensors, f"{name}.mix", mixed), task)


def task_expert_reference(tensors: Tensors, inputs: Tensors, task: str) -> Tensor:
    levels = levels_of(tensors, inputs)
    memory = tensors[f"sharing.memories.{task}.vector"][None, :, None, None].expand(len(levels[0]), -1, -1, -1)
    for place in (1, 0):
        level, name = levels[place], f"sharing.levels.{place}"
        memory = sized(memory, level.shape[2:])
        seen = torch.cat([level.mean(dim=(2, 3)), memory.mean(dim=(2, 3))], dim=1)
        scores = (seen @ tensors[f"{name}.gates.gates.{task}.weight"].T).exp()
        weights = (scores / scores.sum(1, keepdim=True))[:, :, None, None, None]
        experts = [block(tensors, f"{name}.experts.{number}", level) for number in (0, 1)]
        experts.append(block(tensors, f"{name}.read.{task}", memory))
        mixed = sum((weights[:, number] * expert for number, expert in enumerate(experts)), torch.zeros(1))
        memory = memory + block(tensors, f"{name}.write.{task}", mixed)
    return shown(decoded(tensors, task, [memory]), task)


def attended(tensors: Tensors, name: str, x: Tensor, seen: Callable[[int], slice]) -> Tensor:
    """Two heads; token i of a row, [L, d], reads those in seen(i)."""
    q, k, v = linear(tensors, f"{name}.inwards", normalised(tensors, f"{name}.attention_norm", x)).chunk(3, 1)
    read, half = torch.zeros_like(x), x.shape[1] // 2
    for head in (slice(0, half), slice(half, 2 * half)):
        for place in range(len(x)):
            weights = (k[seen(place), head] @ q[place, head] / half**0.5).softmax(0)
            read[place, head] = weights @ v[seen(place), head]
    return x + linear(tensors, f"{name}.outwards", read)


def gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / 2**0.5)) / 2


def plain_layer(tensors: Tensors, name: str, x: Tensor, seen: Callable[[int], slice]) -> Tensor:
    x = attended(tensors, name, x, seen)
    inner = gelu(linear(tensors, f"{name}.network.0", normalised(tensors, f"{name}.network_norm", x)))
    return x + linear(tensors, f"{name}.network.3", inner)


def tokens_of(tensors: Tensors, coarsest: Tensor) -> list[Tensor]:
    return [row.flatten(1).T + tensors["sharing.places.vectors"] for row in coarsest]


def task_tokens_reference(tensors: Tensors, inputs: Tensors, task: str) -> Tensor:
    finest, coarsest = levels_of(tensors, inputs)
    rows = []
    for row in tokens_of(tensors, coarsest):
        x = torch.cat([row, tensors[f"sharing.tokens.{task}.vector"][None]])
        for layer in (0, 1):
            x = plain_layer(tensors, f"sharing.blocks.{layer}", x, lambda place: slice(0, 7 if place == 6 else 6))
        x = normalised(tensors, "sharing.norm", x)
        rows.append((x[:6] * 2 / (1 + (-x[6]).exp())).T.reshape(coarsest.shape[1:]))
    return shown(decoded(tensors, task, [finest, torch.stack(rows)]), task)


def network(tensors: Tensors, name: str, x: Tensor) -> Tensor:
    """An expert of two layers."""
    return linear(tensors, f"{name}.2", gelu(linear(tensors, f"{name}.0", x)))


def m3vit_reference(tensors: Tensors, inputs: Tensors, task: str) -> Tensor:
    """A plain layer, then one whose tokens go to the two experts of three with the largest scores."""
    finest, coarsest = levels_of(tensors, inputs)
    rows, name = [], "sharing.layers.1"
    for row in tokens_of(tensors, coarsest):
        x = plain_layer(tensors, "sharing.layers.0", row, lambda _: slice(None))
        x = attended(tensors, name, x, lambda _: slice(None))
        read = normalised(tensors, f"{name}.network_norm", x)
        made = []
        for token in read:
            scores = tensors[f"{name}.gates.gates.{task}.weight"] @ token
            best = sorted(range(3), key=lambda number: -float(scores[number]))[:2]
            weights = scores[best].softmax(0)
            total = torch.zeros_like(token)
            for weight, number in zip(weights, best, strict=True):
                total = total + weight * network(tensors, f"{name}.network.experts.{number + 1}", token)
            made.append(total)
        rows.append(normalised(tensors, "sharing.norm", x + torch.stack(made)).T.reshape(coarsest.shape[1:]))
    return shown(decoded(tensors, task, [finest, torch.stack(rows)]), task)


DENSE_REFERENCES: dict[str, Callable[[Tensors, Tensors, str], Tensor]] = {
    "mtan": mtan_reference,
    "pad": pad_reference,
    "medusa": medusa_reference,
    "task_expert": task_expert_reference,
    "m3vit": m3vit_reference,
    "hard on a pyramid": hard_reference,
    "film inside a pyramid": film_reference,
    "single on a pyramid": single_reference,
    "task_tokens on a pyramid": task_tokens_reference,
}
