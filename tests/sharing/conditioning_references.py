"""What architectures compute that tell one network its task, written without the code under test."""

from collections.abc import Callable

import torch
from tests.sharing.models import TABLE
from tests.sharing.references import Tensors, embedded, encoder_reference, linear, normalised
from torch import Tensor

# ---- conditioning: a row at a time would only repeat what broadcasting says


def conditioned_layers(tensors: Tensors, inputs: Tensors, change: Callable[[int, Tensor], Tensor]) -> Tensor:
    x = encoder_reference(tensors, "sharing.encoder", inputs)
    for layer in (0, 1):
        x = torch.relu(change(layer, linear(tensors, f"sharing.layers.{layer}", x)))
    return x


def film_reference(tensors: Tensors, inputs: Tensors, task: str) -> Tensor:
    def change(layer: int, x: Tensor) -> Tensor:
        place = f"sharing.modulations.{task}.{layer}"
        return x * tensors[f"{place}.scale"] + tensors[f"{place}.shift"]

    return conditioned_layers(tensors, inputs, change)


def film_inside_reference(tensors: Tensors, inputs: Tensors, task: str) -> Tensor:
    """One shared layer, then the encoder's first: the parts stand in that order."""

    def changed(layer: str, part: int, x: Tensor) -> Tensor:
        place = f"sharing.modulations.{task}.{part}"
        x = linear(tensors, f"sharing.{layer}", x) * tensors[f"{place}.scale"] + tensors[f"{place}.shift"]
        return x.clamp(min=0)

    x = changed("encoder.layers.0", 1, embedded(tensors, "sharing.encoder", inputs))
    return changed("layers.0", 0, linear(tensors, "sharing.encoder.layers.2", x).clamp(min=0))


def task_embedding_reference(tensors: Tensors, inputs: Tensors, task: str) -> Tensor:
    """With the matrix that reads the joined vector [h; e]."""
    x, own = encoder_reference(tensors, "sharing.encoder", inputs), tensors[f"sharing.embeddings.{task}.vector"]
    for layer in (0, 1):
        weight, reader = tensors[f"sharing.layers.{layer}.weight"], tensors[f"sharing.readers.{layer}.weight"]
        joined = torch.cat([x, own.expand(len(x), -1)], dim=1)
        x = torch.relu(joined @ torch.cat([weight, reader], dim=1).T + tensors[f"sharing.layers.{layer}.bias"])
    return x


def yolor_reference(tensors: Tensors, inputs: Tensors, task: str) -> Tensor:
    z = encoder_reference(tensors, "sharing.encoder", inputs)
    latent = tensors["sharing.bases"].T @ tensors[f"sharing.latents.{task}.vector"]
    return linear(tensors, "sharing.join", torch.stack([torch.cat([row, latent]) for row in z]))


def channel_masks_reference(tensors: Tensors, inputs: Tensors, task: str) -> Tensor:
    """click 10, topic 40, assays 30 of 10 to 50: places 0, 3/4, 1/2. Of 7 and 6 channels 4 and 3 are on; the windows
    start at round(3 p^1.5): 0, 2 (1.95), 1 (1.06)."""
    first = {"click": 0, "topic": 2, "assays": 1}[task]

    def change(layer: int, x: Tensor) -> Tensor:
        on = torch.tensor([float(first <= channel < first + (4, 3)[layer]) for channel in range((7, 6)[layer])])
        return x * on

    return conditioned_layers(tensors, inputs, change)


# ---- sequences


def column_tokens(tensors: Tensors, inputs: Tensors) -> Tensor:
    columns = [inputs["numeric"][:, [j]] * tensors["sharing.encoder.weight"][j] for j in range(5)]
    table, offset = tensors["sharing.encoder.embeddings.tables.8.weight"], 0
    for column, cardinality in enumerate(TABLE.cardinalities):
        columns.append(table[offset + inputs["categorical"][:, column]])
        offset += cardinality
    return torch.stack(columns, dim=1) + tensors["sharing.encoder.bias"]


def transformed(tensors: Tensors, x: Tensor, seen: Callable[[int], slice]) -> Tensor:
    """One row's tokens [L, 8] through two blocks of two heads; `seen` says which places a place reads."""
    for layer in (0, 1):
        block = f"sharing.blocks.{layer}"
        read = torch.zeros_like(x)
        q, k, v = linear(tensors, f"{block}.inwards", normalised(tensors, f"{block}.attention_norm", x)).chunk(3, 1)
        for head in (slice(0, 4), slice(4, 8)):
            for place in range(len(x)):
                weights = (k[seen(place), head] @ q[place, head] / 2).softmax(0)
                read[place, head] = weights @ v[seen(place), head]
        x = x + linear(tensors, f"{block}.outwards", read)
        inner = linear(tensors, f"{block}.network.0", normalised(tensors, f"{block}.network_norm", x))
        x = x + linear(tensors, f"{block}.network.3", inner * (1 + torch.erf(inner / 2**0.5)) / 2)
    return normalised(tensors, "sharing.norm", x)


def task_tokens_reference(tensors: Tensors, inputs: Tensors, task: str) -> Tensor:
    """Features read features, the task's token reads features and itself."""
    own = tensors[f"sharing.tokens.{task}.vector"][None]
    rows = [torch.cat([row, own]) for row in column_tokens(tensors, inputs)]
    return torch.stack([transformed(tensors, row, lambda place: slice(0, 9 if place == 8 else 8))[8] for row in rows])


def prefix_reference(tensors: Tensors, inputs: Tensors, task: str) -> Tensor:
    own = tensors[f"sharing.prefixes.{task}.vectors"]
    rows = [torch.cat([own, row]) for row in column_tokens(tensors, inputs)]
    return torch.stack([transformed(tensors, row, lambda _: slice(None))[3:].mean(0) for row in rows])


def modality_masks_reference(tensors: Tensors, inputs: Tensors, task: str) -> Tensor:
    """In evaluation every token is seen."""
    rows = column_tokens(tensors, inputs)
    return torch.stack([transformed(tensors, row, lambda _: slice(None)).mean(0) for row in rows])


def sequential_state_reference(tensors: Tensors, inputs: Tensors, task: str) -> Tensor:
    rows = []
    for row in column_tokens(tensors, inputs):
        state = tensors["sharing.start"]
        for number, part in enumerate((row[:5], row[5:7], row[7:])):
            place = f"sharing.updates.{number}"
            hidden = torch.relu(linear(tensors, f"{place}.inner", torch.cat([state, part.flatten()])))
            state = state + linear(tensors, f"{place}.outer", hidden)
        rows.append(state)
    return torch.stack(rows)


CONDITIONING_REFERENCES: dict[str, Callable[[Tensors, Tensors, str], Tensor]] = {
    "film": film_reference,
    "film inside a table": film_inside_reference,
    "task_embedding": task_embedding_reference,
    "yolor": yolor_reference,
    "channel_masks": channel_masks_reference,
    "task_tokens": task_tokens_reference,
    "prefix": prefix_reference,
    "modality_masks": modality_masks_reference,
    "sequential_state": sequential_state_reference,
}
