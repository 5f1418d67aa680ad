"""What the recommenders' architectures compute, written without the code under test."""

from collections.abc import Callable

import torch
from tests.sharing.conditioning_references import column_tokens, transformed
from tests.sharing.references import (
    TASKS,
    Tensors,
    dense,
    encoder_reference,
    expert,
    linear,
    normalised,
)
from torch import Tensor


def esmm_reference(tensors: Tensors, inputs: Tensors, task: str) -> Tensor:
    return expert(tensors, f"sharing.towers.{task}", 0, encoder_reference(tensors, "sharing.encoder", inputs))


def aitm_reference(tensors: Tensors, inputs: Tensors, task: str) -> Tensor:
    """A row at a time: the weights of what is passed on and of the task's own are a softmax of two inner products."""
    z = encoder_reference(tensors, "sharing.encoder", inputs)
    before = torch.zeros(0)
    for place, name in enumerate(TASKS):
        own = dense(tensors, f"sharing.towers.{name}", z, (0, 2))
        if place:
            prefix = f"sharing.transfers.{name}"
            passed, rows = dense(tensors, f"{prefix}.passed_on", before, (0,)), []
            for row in range(len(z)):
                both = [passed[row], own[row]]
                keys, queries, values = (
                    [linear(tensors, f"{prefix}.{what}", u) for u in both] for what in ("keys", "queries", "values")
                )
                scores = [torch.exp(keys[u] @ queries[u] / 6**0.5) for u in (0, 1)]
                rows.append((scores[0] * values[0] + scores[1] * values[1]) / (scores[0] + scores[1]))
            own = torch.stack(rows)
        before = own
        if name == task:
            return own
    raise AssertionError(task)


def pepnet_reference(tensors: Tensors, inputs: Tensors, task: str) -> Tensor:
    """One embedding table for each side encoder: the domain's has the pages, the prior's the items before the users."""

    def gate(prefix: str, x: Tensor) -> Tensor:
        inner = linear(tensors, f"{prefix}.layers.0", x).clamp(min=0)
        return 2 / (1 + (-linear(tensors, f"{prefix}.layers.2", inner)).exp())

    z, (page, user, item) = encoder_reference(tensors, "sharing.encoder", inputs), inputs["categorical"].T
    domain = tensors["sharing.domain.embeddings.tables.2.weight"][page]
    table = tensors["sharing.prior.embeddings.tables.3.weight"]
    prior = torch.cat([table[item], table[3 + user]], dim=1)
    x = o = gate("sharing.embedding_gate", torch.cat([domain, z], dim=1)) * z
    for layer in (0, 1):
        scale = gate(f"sharing.towers.{task}.gates.{layer}", torch.cat([prior, o], dim=1))
        x = scale * linear(tensors, f"sharing.towers.{task}.layers.{layer}", x).clamp(min=0)
    return x


def dtrn_reference(tensors: Tensors, inputs: Tensors, task: str) -> Tensor:
    """A row at a time: eight columns of width 8 and the interest, two heads of width 4."""

    def centred(x: Tensor) -> Tensor:
        x = x - x.mean(-1, keepdim=True)
        return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()

    made = linear(tensors, "sharing.transformer.hypernetwork", tensors[f"sharing.vectors.{task}.vector"])
    rows = []
    for row in column_tokens(tensors, inputs):
        x, read = row, torch.zeros_like(row)
        inwards = linear(tensors, "sharing.transformer.inwards", centred(x) * (1 + made[:8]) + made[8:16])
        q, k, v = inwards.chunk(3, 1)
        for head in (slice(0, 4), slice(4, 8)):
            for place in range(8):
                read[place, head] = (k[:, head] @ q[place, head] / 2).softmax(0) @ v[:, head]
        x = x + linear(tensors, "sharing.transformer.outwards", read)
        inner = linear(tensors, "sharing.transformer.network.0", centred(x) * (1 + made[16:24]) + made[24:])
        gelu = inner * (1 + torch.erf(inner / 2**0.5)) / 2
        x = x + linear(tensors, "sharing.transformer.network.2", gelu)
        fields = torch.cat([row, x.mean(0, keepdim=True)])
        hidden = linear(tensors, f"sharing.refinements.{task}.0", fields.flatten()).clamp(min=0)
        weights = 1 / (1 + (-linear(tensors, f"sharing.refinements.{task}.2", hidden)).exp())
        refined = torch.cat([weight * field for weight, field in zip(weights, fields, strict=True)])
        rows.append(dense(tensors, f"sharing.towers.{task}", refined, (0, 2)))
    return torch.stack(rows)


def apem_reference(tensors: Tensors, inputs: Tensors, task: str) -> Tensor:
    """A row at a time: three points and two heads of width 4; the task's vector weighs the eight columns."""

    def read(prefix: str, readers: Tensor, others: Tensor) -> Tensor:
        q, found = linear(tensors, f"{prefix}.queries", readers), torch.zeros_like(readers)
        k, v = linear(tensors, f"{prefix}.keys_values", others).chunk(2, 1)
        for head in (slice(0, 4), slice(4, 8)):
            for place in range(len(readers)):
                found[place, head] = (k[:, head] @ q[place, head] / 2).softmax(0) @ v[:, head]
        return linear(tensors, f"{prefix}.outwards", found)

    rows, layer = [], "sharing.layers.0"
    for x in column_tokens(tensors, inputs):
        normed, points = normalised(tensors, f"{layer}.norm", x), tensors[f"{layer}.points"]
        points = points + read(f"{layer}.gather", points, normed)
        x = x + read(f"{layer}.spread", normed, normalised(tensors, f"{layer}.point_norm", points))
        inner = linear(tensors, f"{layer}.excitation.0", x.mean(0)).clamp(min=0)
        x = x / (1 + (-linear(tensors, f"{layer}.excitation.2", inner)).exp())
        scores = linear(tensors, "sharing.keys", x) @ tensors[f"sharing.indicators.{task}.vector"] / 8**0.5
        selected = sum((weight * token for weight, token in zip(scores.softmax(0), x, strict=True)), torch.zeros(8))
        rows.append(dense(tensors, f"sharing.towers.{task}", selected[None], (0, 2))[0])
    return torch.stack(rows)


def m2trec_reference(tensors: Tensors, inputs: Tensors, task: str) -> Tensor:
    rows = column_tokens(tensors, inputs)
    return torch.stack([transformed(tensors, row, lambda _: slice(None)).mean(0) for row in rows])


RECOMMENDER_REFERENCES: dict[str, Callable[[Tensors, Tensors, str], Tensor]] = {
    "esmm": esmm_reference,
    "aitm": aitm_reference,
    "pepnet": pepnet_reference,
    "dtrn": dtrn_reference,
    "apem": apem_reference,
    "m2trec": m2trec_reference,
}
