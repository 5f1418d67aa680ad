"""What `mod_squad` computes, written without the code under test: a token and an expert at a time."""

import torch
from tests.sharing.conditioning_references import column_tokens
from tests.sharing.dense_references import decoded, levels_of, network, shown, tokens_of
from tests.sharing.references import Tensors, linear, normalised
from torch import Tensor


def routed(tensors: Tensors, x: Tensor, task: str) -> Tensor:
    """A row's tokens, [L, d], after two layers: heads, then networks, two of each for a token."""
    for block in range(4):
        name = f"sharing.blocks.{block}"
        read, made = normalised(tensors, f"{name}.norm", x), []
        for token in read:
            scores = tensors[f"{name}.gates.{task}.weight"] @ token
            best = sorted(range(len(scores)), key=lambda number: -float(scores[number]))[:2]
            total = torch.zeros_like(token)
            for weight, number in zip(scores[best].softmax(0), best, strict=True):
                expert = f"{name}.mixture.experts.{number + 1}"
                if block % 2:
                    out = network(tensors, expert, token)
                else:
                    keys, values = linear(tensors, f"{name}.mixture.keys_values", read).chunk(2, 1)
                    query = linear(tensors, f"{expert}.queries", token)
                    out = linear(tensors, f"{expert}.outwards", (keys @ query / len(query) ** 0.5).softmax(0) @ values)
                total = total + weight * out
            made.append(total)
        x = x + torch.stack(made)
    return normalised(tensors, "sharing.norm", x)


def mod_squad_reference(tensors: Tensors, inputs: Tensors, task: str) -> Tensor:
    return torch.stack([routed(tensors, row, task).mean(0) for row in column_tokens(tensors, inputs)])


def mod_squad_on_a_pyramid_reference(tensors: Tensors, inputs: Tensors, task: str) -> Tensor:
    finest, coarsest = levels_of(tensors, inputs)
    rows = [routed(tensors, row, task).T.reshape(coarsest.shape[1:]) for row in tokens_of(tensors, coarsest)]
    return shown(decoded(tensors, task, [finest, torch.stack(rows)]), task)


SQUAD_REFERENCES = {
    "mod_squad": mod_squad_reference,
    "mod_squad on a pyramid": mod_squad_on_a_pyramid_reference,
}
