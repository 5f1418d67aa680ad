"""The transformer of experts: its term, what it remembers, who computes, and a task's part taken out."""

import math
from functools import partial
from typing import Any

import pytest
import torch
from tests.sharing.models import (
    OUTPUTS,
    TABLE,
    TEXT,
    TINY_BERT,
    inputs_of,
    model_of,
    table_inputs,
    table_model,
    text_inputs,
)
from torch import Tensor

from polytask.core.errors import BadValue, UnknownName
from polytask.sharing import ModelSpec, MultiTaskModel, build_model
from polytask.sharing.mod_squad import information
from polytask.sharing.tape import listen
from polytask.sharing.trimming import trimmed

PLACES = [f"layer.{layer}.{what}" for layer in (0, 1) for what in ("attention", "network")]


def squad(**options: Any) -> MultiTaskModel:
    return table_model({"kind": "mod_squad", "heads": 3, "experts": 4, **options})


# ---- the term


def test_mutual_information_by_hand() -> None:
    apart, alike = torch.eye(2), torch.full((3, 4), 0.25)
    torch.testing.assert_close(information(apart), torch.tensor([math.log(2) / 2] * 2))
    torch.testing.assert_close(information(alike), torch.zeros(3))
    # P(e) = 1/2: each part is (3/4 log 3/2 + 1/4 log 1/2) / 2
    part = (0.75 * math.log(1.5) + 0.25 * math.log(0.5)) / 2
    torch.testing.assert_close(information(torch.tensor([[0.75, 0.25], [0.25, 0.75]])), torch.tensor([part] * 2))


def test_the_parts_have_the_gradient_of_the_whole_each_for_its_own_task() -> None:
    scores = torch.tensor([[0.3, -1.0, 0.7], [1.2, 0.1, -0.4]], dtype=torch.float64, requires_grad=True)
    use = scores.softmax(1)
    whole = (use * use.log()).sum() / 2 - (use.mean(0) * use.mean(0).log()).sum()
    torch.testing.assert_close(information(use).sum(), whole)
    (expected,) = torch.autograd.grad(whole, scores, retain_graph=True)
    parts = [torch.autograd.grad(part, scores, retain_graph=True)[0] for part in information(use)]
    torch.testing.assert_close(parts[0] + parts[1], expected)
    assert parts[0][1].abs().max() == parts[1][0].abs().max() == 0


def keep_use(into: dict[str, Tensor], task: str, _module: Any, _inputs: Any, scores: Tensor) -> None:
    into[task] = scores.softmax(-1).mean(0)


def passed(model: MultiTaskModel, tasks: list[str]) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
    """The terms on the tape after a pass, and of each block P(e | t) by the scores of its routers."""
    use: list[dict[str, Tensor]] = [{} for _ in model.sharing.blocks]
    hooks = [
        gate.register_forward_hook(partial(keep_use, into, task))
        for block, into in zip(model.sharing.blocks, use, strict=True)
        for task, gate in block.gates.items()
    ]
    with listen() as tape:
        model(table_inputs(6), tasks)
    for hook in hooks:
        hook.remove()
    return tape.penalties, use


def test_the_term_is_on_the_tape_and_an_absent_task_is_remembered() -> None:
    model = squad(information=0.5, memory=0.75)
    penalties, first = passed(model, list(OUTPUTS))
    assert list(penalties) == list(OUTPUTS)
    for place, task in enumerate(OUTPUTS):
        expected = -0.5 * sum(information(torch.stack(list(use.values())))[place] for use in first)
        torch.testing.assert_close(penalties[task], expected)
    remembered = [{task: 0.75 / len(shares) + 0.25 * shares.detach() for task, shares in use.items()} for use in first]
    for block, use in zip(model.sharing.blocks, remembered, strict=True):
        for task in OUTPUTS:
            torch.testing.assert_close(block.uses[task].mean, use[task])
    penalties, second = passed(model, ["topic"])
    assert list(penalties) == ["topic"]
    rows = [[of["click"], use["topic"], of["assays"]] for of, use in zip(remembered, second, strict=True)]
    torch.testing.assert_close(penalties["topic"], -0.5 * sum(information(torch.stack(row))[1] for row in rows))
    penalties["topic"].backward()
    reached = [name for name, parameter in model.named_parameters() if parameter.grad is not None]
    assert any(".gates.topic." in name for name in reached)
    assert not any(part in name for name in reached for part in (".click.", ".assays.", "heads."))


def test_there_is_no_term_and_no_memory_in_evaluation_and_no_term_at_0() -> None:
    model = squad().eval()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    penalties, _ = passed(model, list(OUTPUTS))
    assert not penalties
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())
    assert not passed(squad(information=0), list(OUTPUTS))[0]


def test_the_term_parts_the_tasks() -> None:
    """Descent on it alone: what the expert says of the task grows towards log 3, all that there is to say."""
    model, found = squad(layers=1, information=1.0), []
    optimiser = torch.optim.Adam([value for name, value in model.named_parameters() if ".gates." in name], lr=0.05)
    for _ in range(30):
        penalties, use = passed(model, list(OUTPUTS))
        found.append([information(torch.stack(list(of.values()))).sum().item() for of in use])
        optimiser.zero_grad()
        sum(penalties.values(), torch.zeros(())).backward()
        optimiser.step()
    for before, after in zip(found[0], found[-1], strict=True):
        assert 0 < before < 0.1
        assert 0.3 < after < math.log(3)


# ---- who computes


def test_only_the_experts_of_the_named_tasks_compute_and_each_token_is_read_k_times() -> None:
    uses = {
        "click": dict.fromkeys(PLACES, (1, 2)),
        "topic": dict.fromkeys(PLACES, (2, 3)),
        "assays": dict.fromkeys(PLACES, (1, 2, 3)),
    }
    model, read = squad(uses=uses), {}
    for name, module in model.sharing.named_modules():
        if name.endswith((".queries", ".0")) and ".experts." in name:
            module.register_forward_hook(partial(count_rows, read, name))
    model.eval()(table_inputs(5), ["topic"])
    assert {name.split(".")[4] for name in read} == {"2", "3"}
    tokens = 5 * 8
    for block in range(4):
        assert sum(rows for name, rows in read.items() if name.startswith(f"blocks.{block}.")) == 2 * tokens
    assert not any("experts.4" in name for name, _ in model.named_modules())


def count_rows(into: dict[str, int], name: str, _module: Any, inputs: tuple[Tensor], _output: Tensor) -> None:
    into[name] = into.get(name, 0) + len(inputs[0])


def test_padding_is_not_routed_and_does_not_change_a_row() -> None:
    spec = ModelSpec.model_validate(
        {"encoder": {"kind": "transformer", "config": TINY_BERT, "pooling": "none"}, "sharing": "mod_squad"}
    )
    model = build_model(spec, TEXT, OUTPUTS, seed=0).eval()
    inputs = text_inputs([4, 9, 2])
    with listen() as tape:
        whole = model(inputs)
    assert {len(column) for gate in tape.gates.values() for column in gate.values()} == {4 + 9 + 2}
    alone = model({name: values[:1, :4] for name, values in inputs.items()})
    for task, output in alone.items():
        torch.testing.assert_close(output, whole[task][:1])


# ---- a task's part


def test_unused_experts_go_and_the_outputs_stay_bit_by_bit() -> None:
    model, inputs = squad(heads=12, experts=12, k=1), table_inputs(1)
    rows = [(["click"], inputs), (["topic", "assays"], inputs)]
    tensors = {name: value.clone() for name, value in model.state_dict().items()}
    after = trimmed(model, rows)
    assert model.training
    assert all(torch.equal(value, tensors[name]) for name, value in model.state_dict().items())
    gone = set(tensors) - set(after.state_dict())
    assert gone
    assert all(".experts." in name for name in gone)
    before, found = model.eval()(inputs), after.eval()(inputs)
    assert all(torch.equal(found[task], before[task]) for task in OUTPUTS)
    again = build_model(after.spec, TABLE, OUTPUTS, {"topic": [9]}, seed=3).eval()
    again.load_state_dict(after.state_dict())
    assert all(torch.equal(again(inputs)[task], before[task]) for task in OUTPUTS)
    assert all(len(used) < 12 for by_place in after.sharing.uses().values() for used in by_place.values())


def test_a_task_keeps_what_it_uses_most_whatever_the_threshold() -> None:
    inputs = table_inputs(4)
    after = trimmed(squad(), [(["click"], inputs), (["click"], inputs)], threshold=0.99)
    uses = after.sharing.uses()
    assert all(1 <= len(used) <= 2 for used in uses["click"].values())
    assert all(len(used) == (3 if place.endswith("attention") else 4) for place, used in uses["topic"].items())
    assert after(inputs)["click"].isfinite().all()


def test_a_task_that_comes_later_chooses_among_the_experts_that_are_left() -> None:
    options = trimmed(squad(), [(list(OUTPUTS), table_inputs(2))], threshold=0.3).spec.sharing
    few = options.of_tasks(["click"])
    assert list(few.uses) == ["click"]
    model = table_model(few.model_dump(), outputs={"click": 1, "new": 1})
    for block in model.sharing.blocks:
        assert block.own["new"] == list(few.uses["click"][block.place])
        assert [int(number) for number in block.mixture.experts] == block.own["new"]


# ---- what does not fit


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 3}, r"sharing 'mod_squad': k is 3; allowed: a divisor of the width of a token, 8"),
        ({"k": 4}, r"gate top_k: k is 4; allowed: at most the number of experts, 3"),
        ({"uses": {"click": {"layer.0.network": [1, 5]}}}, r"uses of task 'click' in layer.0.network is \[1, 5\]"),
        ({"uses": {"click": {"layer.0.network": []}}}, r"is \[\]; allowed: one or more different numbers from 1 to 4"),
    ],
)
def test_options_that_do_not_fit(options: dict[str, Any], message: str) -> None:
    with pytest.raises(BadValue, match=message):
        squad(**options)


def test_a_place_that_there_is_not() -> None:
    with pytest.raises(UnknownName, match=r"no place 'layer.0.netwrk' \(did you mean 'layer.0.network'"):
        squad(uses={"click": {"layer.0.netwrk": [1]}})


def test_what_cannot_be_trimmed() -> None:
    with pytest.raises(BadValue, match=r"the model's sharing is 'hard'; allowed: mod_squad"):
        trimmed(model_of("hard"), [(["click"], inputs_of("hard", 2))])
    with pytest.raises(BadValue, match=r"threshold is 1; allowed: a number from 0, below 1"):
        trimmed(squad(), [], threshold=1)
