"""The encoder of sequences: what a token is, who reads padding, what does not fit."""

import pytest
import torch
from tests.sharing.models import OUTPUTS
from torch import Tensor

from polytask.core.errors import BadValue
from polytask.core.inputs import InputSchema
from polytask.sharing import ModelSpec, MultiTaskModel, build_model
from polytask.sharing.encoders.contract import build

SCHEMA = InputSchema(sequences=(9, 6), longest=5)
ROWS = torch.tensor([[[3, 5], [8, 4], [1, 2]], [[7, 3], [0, 0], [0, 0]]])


def model_of(sharing: str) -> MultiTaskModel:
    spec = ModelSpec.model_validate({"encoder": {"kind": "sequence", "width": 8, "embedding": 3}, "sharing": sharing})
    return build_model(spec, SCHEMA, OUTPUTS, seed=0).double().eval()


@pytest.mark.parametrize("places", [True, False])
def test_a_token_is_what_its_columns_say_and_its_place(places: bool) -> None:
    options = ModelSpec(encoder={"kind": "sequence", "width": 4, "embedding": 3, "places": places}).encoder
    encoder = build(options, SCHEMA).double()
    values, mask = encoder({"sequence": ROWS})
    table = encoder.embeddings.tables["3"].weight
    for row in (0, 1):
        for place in range(3):
            item, category = ROWS[row, place].tolist()
            joined = torch.cat([table[item], table[9 + category]])
            expected = encoder.projection.weight @ joined + encoder.projection.bias
            expected = expected + encoder.places[place] if places else expected
            torch.testing.assert_close(values[row, place], expected)
    assert mask.tolist() == [[True, True, True], [True, False, False]]


@pytest.mark.parametrize("kind", ["m2trec", "prefix", "apem", "task_tokens"])
def test_how_far_a_batch_is_padded_changes_nothing(kind: str) -> None:
    model = model_of(kind)
    alone = model({"sequence": ROWS[1:, :1]})
    padded = torch.cat([ROWS, torch.zeros(2, 2, 2, dtype=torch.int64)], dim=1)
    for task, output in model({"sequence": padded}).items():
        torch.testing.assert_close(output[1:], alone[task])


def test_export_with_a_dynamic_batch() -> None:
    model = model_of("m2trec")
    batch = torch.export.Dim("batch", min=1, max=4096)
    shapes = {"inputs": {"sequence": {0: batch}}, "tasks": None}
    program = torch.export.export(model, ({"sequence": ROWS.repeat(2, 1, 1)}, None), dynamic_shapes=shapes)
    for task, output in program.module()({"sequence": ROWS[:1]}, None).items():
        torch.testing.assert_close(output, model({"sequence": ROWS[:1]})[task])


@pytest.mark.parametrize(
    "rows, found",
    [(ROWS[:, :, :1], r"\[2, 3, 1\]"), (ROWS.repeat(1, 2, 1), r"\[2, 6, 2\]"), (ROWS[0], r"\[3, 2\]")],
)
def test_rows_of_another_shape(rows: Tensor, found: str) -> None:
    message = rf"input 'sequence' is {found}; allowed: \[rows, up to 5 elements, 2\]"
    with pytest.raises(BadValue, match=message):
        model_of("m2trec")({"sequence": rows})


def test_an_index_beyond_its_column() -> None:
    with pytest.raises(BadValue, match=r"input 'sequence', row 1, column 1 is 6; allowed: 0 to 5"):
        model_of("m2trec")({"sequence": torch.tensor([[[3, 5], [3, 6]]])})


def test_other_inputs_are_not_ignored_and_vectors_are_not_read() -> None:
    options = ModelSpec(encoder="sequence").encoder
    with pytest.raises(BadValue, match=r"encoder 'sequence'.*it would ignore numeric"):
        build(options, InputSchema(shapes={"numeric": (2,)}, sequences=(5,), longest=3))
    with pytest.raises(BadValue, match="encoder gives is 'a sequence"):
        model_of("hard")
