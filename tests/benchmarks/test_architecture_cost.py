"""The loops that stand beside the batched experts compute the same, and every architecture has its costs."""

import pytest
import torch
from torch import Tensor, nn

from benchmarks import architecture_cost as cost
from benchmarks import architecture_words
from polytask.evaluation.formatting import listed
from polytask.sharing import SHARING


def pair(kind: str) -> tuple[nn.Module, cost.Loop]:
    ours, loop = cost.built(kind), cost.LOOPS[kind]()
    loop.trunk[0].load_state_dict(ours.sharing.encoder.layers[0].state_dict())
    for head, task in zip(loop.heads, cost.TASKS, strict=True):
        head.load_state_dict(ours.heads[task].output.state_dict())
    return ours, loop


def fill(layers: nn.Module, bank: nn.Module) -> None:
    """An expert a module, from a bank of one layer."""
    for number, layer in enumerate(layers):
        layer[0].load_state_dict({"weight": bank.weights[0][number], "bias": bank.biases[0][number]})


def same(ours: nn.Module, loop: nn.Module) -> None:
    x = torch.linspace(-1, 1, 3 * cost.INPUTS).reshape(3, -1)
    expected: dict[str, Tensor] = loop(x)
    for task, output in ours({"numeric": x}).items():
        torch.testing.assert_close(output, expected[task][:, 0])


@torch.no_grad()
def test_the_mmoe_loop_computes_the_same() -> None:
    ours, loop = pair("mmoe")
    fill(loop.experts, ours.sharing.experts)
    for gate, task in zip(loop.gates, cost.TASKS, strict=True):
        gate.weight.copy_(ours.sharing.gates.gates[task].weight)
    same(ours, loop)


@torch.no_grad()
def test_the_ple_loop_computes_the_same() -> None:
    ours, loop = pair("ple")
    for place, level in enumerate(ours.sharing.levels):
        fill(loop.common[place], level.shared)
        for number, task in enumerate(cost.TASKS):
            fill([loop.own[place][number]], level.own[task])
            loop.gates[place][number].weight.copy_(level.gates.gates[task].weight)
    loop.shared_gate.weight.copy_(ours.sharing.levels[0].shared_gate.weight)
    same(ours, loop)


@torch.no_grad()
def test_the_adatt_loop_computes_the_same() -> None:
    ours, loop = pair("adatt")
    for place, level in enumerate(ours.sharing.levels):
        for number, task in enumerate(cost.TASKS):
            fill(loop.own[place][number], level.own[task])
            loop.gates[place][number].weight.copy_(level.gates[task].weight)
    same(ours, loop)


def test_every_architecture_has_its_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "BATCH", 16)  # nothing below depends on how many rows there are
    monkeypatch.setattr(cost, "PICTURES", 1)
    found = cost.measured(steps=2)
    assert list(found["architectures"]) == [*SHARING.names(), *cost.HARD.values()]
    assert found["architectures"]["one_for_all"]["beside"] == cost.ON_GRAPHS
    assert found["architectures"]["mtan"]["beside"] == cost.ON_PICTURES
    hard, single = found["architectures"]["hard"], found["architectures"]["single"]
    trunk = cost.INPUTS * cost.WIDTH
    assert hard["multiply_adds"] == trunk + 8 * cost.WIDTH
    assert single["multiply_adds"] == 8 * (trunk + cost.WIDTH)
    assert single["multiply_adds_one_task"] == hard["multiply_adds_one_task"] == trunk + cost.WIDTH
    sentences, table = architecture_words.blocks(found)
    assert "Against the same formulas written as loops" in sentences
    assert all(f"| `{name}` |" in table for name in SHARING.names())
    on_pictures = [f"`{name}`" for name, about in found["architectures"].items() if about["beside"] == cost.ON_PICTURES]
    assert f"those of {listed(on_pictures)} to `{cost.ON_PICTURES}`" in sentences
    assert "Not measured yet" not in sentences
    del found["architectures"]["film"]
    assert architecture_words.sentences(found).endswith("Not measured yet: `film`.")
