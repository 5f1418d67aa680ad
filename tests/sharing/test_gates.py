"""Gates: what each selection gives, what is noted on the tape, and what a method adds to a task's loss."""

import copy
import math
from itertools import product

import pytest
import torch
from tests.sharing.models import (
    CASES,
    OUTPUTS,
    PICTURES,
    inputs_of,
    on_pictures,
    options_of,
    table_inputs,
    table_model,
    uniform,
)
from torch import Tensor
from torch.nn import functional

from polytask.core.errors import BadValue, UnknownName
from polytask.core.validation import validated
from polytask.sharing import SHARING, ModelSpec, MultiTaskModel, build_model, read_examples
from polytask.sharing.example_embeddings import unread
from polytask.sharing.gates import GateOptions, Gates
from polytask.sharing.selection import SELECTIONS, DSelectK, Hard, TopK, smooth_step
from polytask.sharing.tape import listen, numbered

SCORES = torch.tensor([[0.0, 2.0, 1.0, 2.0], [-1.0, 0.5, 3.0, 0.0]], dtype=torch.float64)


def gates(**options: object) -> Gates:
    names = dict.fromkeys("ab", numbered("shared", 4))
    return Gates("here", ["a", "b"], 3, names, GateOptions.model_validate(options), seed=0)


def rows(count: int = 5) -> Tensor:
    return torch.linspace(-2, 2, 3 * count).reshape(count, 3)


def test_top_k_is_a_softmax_over_the_largest_and_equal_scores_go_to_the_first() -> None:
    found = TopK(k=2).weights(SCORES, 4)
    first = math.exp(0.5) / (math.exp(0.5) + math.exp(3))
    expected = torch.tensor([[0, 0.5, 0, 0.5], [0, first, 1 - first, 0]], dtype=torch.float64)
    torch.testing.assert_close(found, expected)
    assert TopK(k=1).weights(SCORES, 4).tolist() == [[0, 1, 0, 0], [0, 0, 1, 0]]


def test_hard_takes_one_and_learns_as_the_softmax() -> None:
    scores = SCORES.clone().requires_grad_()
    found = Hard().weights(scores, 4)
    torch.testing.assert_close(found.detach(), torch.tensor([[0.0, 1, 0, 0], [0, 0, 1, 0]], dtype=torch.float64))
    found[:, 0].sum().backward()
    soft = SCORES.softmax(-1)
    torch.testing.assert_close(scores.grad[1, 2], -soft[1, 0] * soft[1, 2])


def test_a_gate_begins_dense_and_ends_sparse() -> None:
    options = {"kind": "dense_to_sparse", "begin": 1, "end": 3, "warm": 4, "cold": 0.25, "threshold": 0.2}
    gate = gates(select=options)
    x, scores = rows(), functional.linear(rows(), gate.gates["a"].weight)
    for passes, temperature in enumerate((4, 4, 1, 0.25, 0.25)):  # the first before, the way there in two, one after
        soft = (scores / temperature).softmax(1)
        share = min(max((passes - 1) / 2, 0), 1)
        kept = torch.where((soft >= 0.2 * share) | (soft == soft.amax(1, keepdim=True)), soft, 0.0)
        gate.passes.count.fill_(passes)
        torch.testing.assert_close(gate("a", x), kept / kept.sum(1, keepdim=True))


def test_a_model_counts_its_passes_in_training_whichever_tasks_are_named() -> None:
    model, inputs = table_model({"kind": "ple", "gate": "dense_to_sparse"}), table_inputs(3)
    counts = [level.gates.passes.count for level in model.sharing.levels]
    model(inputs)
    model(inputs, ["topic"])
    model.from_representation(model.representation(inputs), ["click"])
    assert [int(count) for count in counts] == [3, 3]
    model.eval()(inputs)
    assert [int(count) for count in counts] == [3, 3]
    twin = copy.deepcopy(model).train()
    twin(inputs)
    assert [int(level.gates.passes.count) for level in twin.sharing.levels] == [4, 4]
    assert [int(count) for count in counts] == [3, 3]


def test_a_gate_that_ends_before_it_begins() -> None:
    with pytest.raises(BadValue, match="gate dense_to_sparse: end is 5; allowed: more than begin, 9"):
        gates(select={"kind": "dense_to_sparse", "begin": 9, "end": 5})


def test_smooth_step_by_hand() -> None:
    # -2 x^3 + 1.5 x + 0.5 with width 1: 0 at -1/2, 1/2 at 0, 27/32 at 1/4, 1 at 1/2, flat outside
    x = torch.tensor([-3.0, -0.5, 0.0, 0.25, 0.5, 2.0])
    torch.testing.assert_close(smooth_step(x, 1.0), torch.tensor([0, 0, 0.5, 27 / 32, 1, 1]))
    torch.testing.assert_close(smooth_step(2 * x, 2.0), smooth_step(x, 1.0))


def test_dselect_k_selects_by_binary_codes() -> None:
    # two selectors with equal shares; the first's bits say 0b01, the second's 0b10 (lowest bit first)
    scores = torch.tensor([[0.0, 0.0, 1.0, -1.0, -1.0, 1.0]])
    select = DSelectK(k=2)
    torch.testing.assert_close(select.weights(scores, 4), torch.tensor([[0, 0.5, 0.5, 0]]))
    assert select.penalty(scores, 4).item() == 0  # binary codes have no entropy
    halfway = torch.zeros(1, 6)
    torch.testing.assert_close(select.weights(halfway, 4), torch.full((1, 4), 0.25))
    torch.testing.assert_close(select.penalty(halfway, 4), torch.tensor(1e-3 * 2 * math.log(4)))
    # of three experts the fourth code is left out: what is inside weighs 3/4 for each of the two selectors
    torch.testing.assert_close(select.weights(halfway, 3), torch.full((1, 3), 1 / 3))
    torch.testing.assert_close(select.penalty(halfway, 3), torch.tensor(1e-3 * (2 * math.log(4) + 2 * 4 / 3)))


@pytest.mark.parametrize("select", SELECTIONS)
@pytest.mark.parametrize("reads", ["input", "task", "embedding", "input_and_embedding"])
def test_weights_are_a_distribution_on_both_axes(select: str, reads: str) -> None:
    gate = gates(select=select, reads=reads)
    weights = gate("a", rows())
    assert weights.shape == (5, 4)
    assert bool((weights >= 0).all())
    torch.testing.assert_close(weights.sum(1), torch.ones(5))
    depends_on_rows = not torch.equal(weights[0], weights[4])
    assert depends_on_rows == ("input" in reads and select != "hard") or select in ("hard", "dselect_k", "top_k")
    weights[:, 1].sum().backward()
    assert not torch.equal(weights, gate("b", rows()))


READS = ("input", "task", "embedding", "input_and_embedding", "examples")
FIELDS = {case: SHARING.find(options_of(case)["kind"]).Options.model_fields for case in CASES}
GATED = [
    case for case, fields in FIELDS.items() if "gate" in fields and isinstance(fields["gate"].default, GateOptions)
]

WITHOUT_EXAMPLES = ("stem", "task_expert", "m3vit")  # they refuse them, see test_example_embeddings


@pytest.mark.parametrize("case", GATED)
def test_every_pair_of_the_axes_trains_in_every_architecture_with_a_gate(case: str) -> None:
    inputs = inputs_of(case, 3)
    for reads, select in product(READS, SELECTIONS):
        if reads == "examples" and case in WITHOUT_EXAMPLES:
            continue
        gate = {"reads": reads, "select": select, "learned": reads == "examples"}
        model = gated_model(case, {**options_of(case), "gate": gate})
        for task in unread(model):
            read_examples(model, task, uniform(0, 9, 8), uniform(len(task), 9))
        with listen() as tape:
            outputs = model(inputs)
        assert all(output.isfinite().all() for output in outputs.values()), (reads, select)
        (sum(output.sum() for output in outputs.values()) + sum(tape.penalties.values())).backward()
        of_gates = [value for name, value in model.named_parameters() if ".gates." in name or ".embeddings." in name]
        assert of_gates
        assert all(value.grad is not None and value.grad.isfinite().all() for value in of_gates), (reads, select)


def gated_model(case: str, sharing: dict[str, object]) -> MultiTaskModel:
    if not on_pictures(case):
        return table_model(sharing)
    encoder = {"kind": "pyramid", "channels": [4, 8], "convolutions": 1}
    return build_model(ModelSpec.model_validate({"encoder": encoder, "sharing": sharing}), PICTURES, OUTPUTS, seed=0)


def test_a_gate_that_reads_embeddings_is_shared_by_the_tasks() -> None:
    gate = gates(reads="embedding", embedding=2)
    names = {name: list(parameter.shape) for name, parameter in gate.named_parameters()}
    assert names == {"embeddings.a.vector": [2], "embeddings.b.vector": [2], "shared.weight": [4, 2]}


def test_the_tape_notes_what_was_computed_while_somebody_listened() -> None:
    model, inputs = table_model({"kind": "dselect_k", "experts": 3}), table_inputs(6)
    model(inputs)
    with listen() as tape:
        model(inputs, ["click", "topic"])
    assert list(tape.gates) == [("experts", "click"), ("experts", "topic")]
    weights = tape.gates["experts", "click"]
    assert list(weights) == ["shared 1", "shared 2", "shared 3"]
    torch.testing.assert_close(sum(weights.values()), torch.ones(6))
    assert {name: list(output.shape) for name, output in tape.experts.items()} == {
        ("experts", f"shared {number}"): [6, 64] for number in (1, 2, 3)
    }
    assert list(tape.penalties) == ["click", "topic"]
    tape.penalties["click"].backward()
    assert model.sharing.gates.gates["click"].weight.grad.abs().sum() > 0


def test_the_orthogonality_of_a_sluice_is_its_weights_product() -> None:
    model = table_model({"kind": "sluice", "levels": 1, "hidden_size": 4, "orthogonality": 0.5})
    with listen() as tape:
        model(table_inputs(3), ["topic"])
    weight = model.sharing.levels[0].layers["topic"].weights[0][0].detach()
    expected = 0.5 * sum(float(weight[i] @ weight[j]) ** 2 for i in (0, 1) for j in (2, 3))
    assert tape.penalties["topic"].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", ["top_k", "dselect_k"])
def test_fewer_experts_than_are_chosen(kind: str) -> None:
    with pytest.raises(BadValue, match="k is 5; allowed: at most the number of experts, 4"):
        gates(select={"kind": kind, "k": 5})


def test_what_a_gate_cannot_read() -> None:
    allowed = "allowed: 'input', 'task', 'embedding', 'input_and_embedding' or 'examples'"
    with pytest.raises(BadValue, match=f"gate.reads is 'labels'; {allowed}"):
        validated(GateOptions, {"reads": "labels"}, "gate")


def test_a_selection_that_is_not_there() -> None:
    with pytest.raises(UnknownName, match=r"gate: no selection 'topk' \(did you mean 'top_k'"):
        gates(select="topk")


@pytest.mark.parametrize("experts", [6, 8])
def test_a_code_that_has_become_binary_gives_finite_gradients(experts):
    """Beyond the step's ends a bit is 0 or 1, codes are 0, and the slope of x log x there is infinite."""
    select = DSelectK()
    scores = torch.full((3, select.scores(experts)), 0.6)
    scores[1] = -0.6
    scores[2, -1] = 0.2
    scores.requires_grad_()
    penalty = select.penalty(scores, experts)
    (penalty + select.weights(scores, experts).square().sum()).backward()
    assert penalty.isfinite()
    assert scores.grad.isfinite().all()
