"""Embeddings of tasks that are made of their examples, and the gates that read them."""

from typing import Any

import pytest
import torch
from tests.sharing.models import OUTPUTS, PICTURES, TABLE, table_inputs, table_model, uniform
from torch import Tensor
from torch.nn import functional

from polytask.core.errors import BadValue, DataError, MissingInput
from polytask.core.noise import Noise
from polytask.core.validation import validated
from polytask.sharing import ModelSpec, MultiTaskModel, build_model, read_examples
from polytask.sharing.example_embeddings import example_embedding, unread
from polytask.sharing.gates import GateOptions

WIDTH = 3
ROWS = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]], dtype=torch.float64)
ALL = torch.ones(4, 1, dtype=torch.bool)


def matrix(number: int) -> Tensor:
    """What the correlations with the number of a target go through, [2, WIDTH]."""
    return torch.from_numpy(Noise(0, "example embedding", number).normal(2 * WIDTH)).reshape(2, WIDTH)


def test_by_hand() -> None:
    # the target is the first number of the encoding, whatever their units
    found = example_embedding(5 * ROWS + 2, 3 * ROWS[:, :1] - 1, ALL, WIDTH)
    torch.testing.assert_close(found, functional.normalize(matrix(0)[0], dim=0))
    # (3, 1, -1, -3): a deviation of sqrt 5, and a covariance of 2 with the first number, of 1 with the second
    found = example_embedding(ROWS, torch.tensor([[3.0], [1], [-1], [-3]]), ALL, WIDTH)
    torch.testing.assert_close(found, functional.normalize(2 * matrix(0)[0] + matrix(0)[1], dim=0))
    # two numbers, of which the second is there in the first two rows alone: there it is 1, -1 and the encoding's second
    # number too, and the first number of the encoding is 1 in both
    present = torch.tensor([[True, True], [True, True], [True, False], [True, False]])
    targets = torch.stack([ROWS[:, 0], torch.tensor([4.0, 2, torch.nan, torch.nan])], dim=1)
    found = example_embedding(ROWS, targets, present, WIDTH)
    torch.testing.assert_close(found, functional.normalize(matrix(0)[0] + matrix(1)[1], dim=0))


def test_tasks_with_the_same_labels_get_one_vector_and_with_opposite_ones_opposite_vectors() -> None:
    encodings, labels = uniform(0, 50, 7), (uniform(1, 50, 1) > 0.5).double()
    present = torch.ones(50, 1, dtype=torch.bool)
    found = example_embedding(encodings, labels, present, 16)
    assert found.norm().item() == pytest.approx(1)
    torch.testing.assert_close(example_embedding(encodings, 1 - labels, present, 16), -found)
    order = torch.from_numpy(Noise(0, "order").permutation(50))
    torch.testing.assert_close(example_embedding(encodings[order], labels[order], present, 16), found)


def gated(**sharing: Any) -> MultiTaskModel:
    return table_model({"kind": "task_moe", "experts": 3, "gate": {"reads": "examples", "embedding": 4}, **sharing})


LABELS = {
    "click": (uniform(5, 40) > 0.5).float(),
    "topic": torch.from_numpy(Noise(0, "topic").integers(40, 4)),
    "assays": (uniform(6, 40, 3) > 0.5).float(),
}


def read_all(model: MultiTaskModel) -> MultiTaskModel:
    start, inputs = gated(), table_inputs(40)
    for task in OUTPUTS:
        read_examples(model, task, start.representation(inputs, [task]), LABELS[task])
    return model


def test_a_model_computes_nothing_before_its_gates_have_read_examples() -> None:
    model, inputs = gated(), table_inputs(5)
    message = "gate 'level.0': the examples of task 'click' were not read yet: training reads them"
    with pytest.raises(MissingInput, match=message):
        model(inputs)
    assert unread(model) == list(OUTPUTS)
    read_all(model)
    assert unread(model) == []
    outputs = model(inputs)
    vectors = [[gates.embeddings[task].vector for task in OUTPUTS] for gates in model.sharing.gates]
    assert all(torch.equal(one, other) for one, other in zip(*vectors, strict=True))  # of both levels
    assert len({tuple(vector.tolist()) for vector in vectors[0]}) == 3
    other = gated()
    other.load_state_dict(model.state_dict())
    assert all(torch.equal(outputs[task], values) for task, values in other(inputs).items())


def test_classes_are_read_as_one_number_each_and_absent_labels_not_at_all() -> None:
    model, encodings = gated(), uniform(0, 40, 8)
    present = uniform(7, 40) > 0.3
    read_examples(model, "topic", encodings, LABELS["topic"] * present, present)
    whole = model.sharing.gates[0].embeddings["topic"].vector.clone()
    numbers = functional.one_hot(LABELS["topic"][present], 4).float()
    read_examples(
        model, "topic", encodings, functional.one_hot(LABELS["topic"]).float(), present[:, None].expand(-1, 4)
    )
    torch.testing.assert_close(model.sharing.gates[0].embeddings["topic"].vector, whole)
    read_examples(model, "topic", encodings[present], numbers)
    alone = model.sharing.gates[0].embeddings["topic"].vector
    assert functional.cosine_similarity(alone, whole, dim=0) > 0.99  # but for the deviations of the encodings


def test_vectors_stay_unless_they_learn() -> None:
    for learned in (False, True):
        model = read_all(gated(gate={"reads": "examples", "select": "softmax", "embedding": 4, "learned": learned}))
        sum(output.square().sum() for output in model(table_inputs(5)).values()).backward()
        grads = [gates.embeddings["click"].vector.grad for gates in model.sharing.gates]
        assert all((grad is not None and bool(grad.any())) == learned for grad in grads)


def test_an_exported_model_needs_no_examples() -> None:
    model = read_all(gated()).eval()
    names = ("click", "topic", "assays")
    exported = torch.export.export(model, (table_inputs(5), names)).module()
    expected, found = model(table_inputs(5)), exported(table_inputs(5), names)
    assert all(torch.equal(found[task], expected[task]) for task in names)


@pytest.mark.parametrize("what", ["labels", "inputs"])
def test_examples_that_are_all_alike(what: str) -> None:
    encodings = torch.full((40, 8), 0.1) if what == "inputs" else uniform(0, 40, 8)
    labels = LABELS["click"] if what == "inputs" else torch.full((40,), 0.7)
    with pytest.raises(DataError, match="task 'click': its 40 examples say nothing, as all their labels or all their"):
        read_examples(gated(), "click", encodings, labels)


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("stem", "its tasks share no encoding of a row"),
        ("task_expert", "its encoders give maps"),
        ("m3vit", "its encoders give maps"),
    ],
)
def test_architectures_without_one_vector_a_row(kind: str, why: str) -> None:
    encoder = "tabular" if kind == "stem" else {"kind": "pyramid", "channels": [4, 8], "convolutions": 1}
    spec = ModelSpec.model_validate({"encoder": encoder, "sharing": {"kind": kind, "gate": {"reads": "examples"}}})
    schema = TABLE if kind == "stem" else PICTURES
    with pytest.raises(BadValue, match=f"sharing '{kind}': gate.reads is 'examples'; allowed: .*embedding: {why}"):
        build_model(spec, schema, OUTPUTS, seed=0)


def test_only_vectors_of_examples_can_be_told_to_stay() -> None:
    with pytest.raises(BadValue, match="gate: learned is True; allowed: false unless reads is examples"):
        validated(GateOptions, {"reads": "embedding", "learned": True}, "gate")
