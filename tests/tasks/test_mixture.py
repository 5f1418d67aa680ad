from itertools import islice

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from tests.annotations import numpy_and_torch

from polytask.core.errors import BadValue, DataError, MissingInput
from polytask.tasks.examples import Examples
from polytask.tasks.mixture import Mixture, MixtureSpec, evaluation_batches
from polytask.testing.contract import generators


def examples(n, source="a"):
    rows = torch.arange(n)
    return Examples(
        inputs={"numeric": rows[:, None].float()},
        labels={"t": rows.float()},
        present={"t": torch.ones(n, dtype=torch.bool)},
        rows=rows,
        source=source,
    )


class Stored:
    """A split that is read batch by batch, as from disk; counts how often reading begins."""

    def __init__(self, split):
        self.split, self.begun = split, 0

    def __len__(self):
        return len(self.split)

    def batches(self, batch_size, noise=None, start=0):
        self.begun += 1
        order = np.arange(len(self)) if noise is None else noise.permutation(len(self))
        for begin in range(start * batch_size, len(self), batch_size):
            yield self.split.batch(order[begin : begin + batch_size])


SPLITS = {name: examples(n, name) for name, n in {"a": 7, "b": 25, "c": 68}.items()}
SPECS = {
    "proportional": MixtureSpec(),
    "uniform": MixtureSpec(kind="uniform"),
    "temperature": MixtureSpec(kind="temperature", value=2),
    "one task": MixtureSpec(kind="temperature", value=2, batches="one_task"),
}
every_spec = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)


def content(steps):
    return [[(piece.source, piece.rows.tolist()) for piece in pieces] for pieces in steps]


def test_one_source_is_permuted_afresh_in_each_epoch():
    mixture = Mixture({"a": examples(10)}, MixtureSpec(), batch_size=4, seed=0)
    orders = []
    for epoch in range(3):
        steps = list(mixture.batches(epoch))
        assert [len(pieces) for pieces in steps] == [1, 1, 1]
        assert [len(piece) for (piece,) in steps] == [4, 4, 2]  # what is left over is kept
        orders.append([row for (piece,) in steps for row in piece.rows.tolist()])
        assert sorted(orders[-1]) == list(range(10))
    assert mixture.steps_per_epoch == 3
    assert orders[0] != orders[1] != orders[2]


def test_inputs_and_labels_follow_the_rows():
    ((piece,),) = Mixture({"a": examples(5)}, MixtureSpec(), batch_size=5, seed=1).batches(0)
    assert piece.inputs["numeric"][:, 0].tolist() == piece.labels["t"].tolist() == piece.rows.tolist()


@every_spec
@pytest.mark.parametrize("wrap", [lambda split: split, Stored], ids=["in memory", "stored"])
def test_any_step_is_reached_without_replaying(spec, wrap):
    splits = {name: wrap(split) for name, split in SPLITS.items()}
    whole = [content(Mixture(splits, spec, 8, seed=3).batches(epoch)) for epoch in range(4)]
    for epoch, start in [(0, 0), (0, 5), (2, 12), (3, 1), (3, 13)]:
        assert content(Mixture(splits, spec, 8, seed=3).batches(epoch, start)) == whole[epoch][start:]


@every_spec
def test_a_stored_split_gives_the_same_batches_and_is_read_once_a_pass(spec):
    stored = {name: Stored(split) for name, split in SPLITS.items()}
    assert content(Mixture(stored, spec, 8, seed=3).batches(1)) == content(Mixture(SPLITS, spec, 8, seed=3).batches(1))
    assert stored["c"].begun <= 3


@every_spec
def test_the_seed_decides(spec):
    first = content(Mixture(SPLITS, spec, 8, seed=3).batches(0))
    assert first == content(Mixture(SPLITS, spec, 8, seed=3).batches(0))
    assert first != content(Mixture(SPLITS, spec, 8, seed=4).batches(0))


@every_spec
def test_global_random_states_are_left_alone(spec):
    states = numpy_and_torch(generators())
    list(Mixture(SPLITS, spec, 8, seed=3).batches(0))
    assert states == numpy_and_torch(generators())


@every_spec
def test_each_pass_over_a_source_has_every_row_once(spec):
    mixture = Mixture(SPLITS, spec, 8, seed=0)
    seen = {name: [] for name in SPLITS}
    for epoch in range(12):
        for pieces in mixture.batches(epoch):
            for piece in pieces:
                seen[piece.source].extend(piece.rows.tolist())
    for name, rows in seen.items():
        n = len(SPLITS[name])
        passes = [rows[begin : begin + n] for begin in range(0, len(rows) - n + 1, n)]
        assert len(passes) > 1
        assert all(sorted(rows_of_pass) == list(range(n)) for rows_of_pass in passes)


@pytest.mark.parametrize(
    "spec, rows, batch_size, sizes",
    [
        # 10 * (1/8, 2/8, 5/8) = 1.25, 2.5, 6.25: the largest remainder gets the last row
        (MixtureSpec(), [100, 200, 500], 10, [1, 3, 6]),
        # 10 / 3 each: equal remainders, so the first gets it
        (MixtureSpec(kind="uniform"), [100, 200, 500], 10, [4, 3, 3]),
        # sqrt: 10, 20, 30 -> 1.67, 3.33, 5
        (MixtureSpec(kind="temperature", value=2), [100, 400, 900], 10, [2, 3, 5]),
        # 0.001, 0.002, 9.997: each has at least one row, taken from the largest
        (MixtureSpec(), [1, 2, 9997], 10, [1, 1, 8]),
        (MixtureSpec(), [1, 2, 9997], 3, [1, 1, 1]),
    ],
)
def test_piece_sizes_of_mixed_batches(spec, rows, batch_size, sizes):
    splits = {str(i): examples(n, str(i)) for i, n in enumerate(rows)}
    mixture = Mixture(splits, spec, batch_size, seed=0)
    assert list(mixture.piece_sizes.values()) == sizes
    (pieces,) = islice(mixture.batches(0), 1)
    assert [piece.source for piece in pieces] == list(splits)
    assert mixture.steps_per_epoch == -(-sum(rows) // batch_size)


def test_shares():
    rows = {"a": 100, "b": 400}
    assert MixtureSpec().shares(rows) == {"a": 0.2, "b": 0.8}
    assert MixtureSpec(kind="uniform").shares(rows) == {"a": 0.5, "b": 0.5}
    assert MixtureSpec(kind="temperature", value=2).shares(rows) == pytest.approx({"a": 1 / 3, "b": 2 / 3})
    assert MixtureSpec(kind="temperature", value=1).shares(rows) == MixtureSpec().shares(rows)


def test_one_task_batches_come_from_one_source_as_often_as_its_share():
    splits = {"a": examples(300, "a"), "b": examples(2700, "b")}
    mixture = Mixture(splits, MixtureSpec(batches="one_task"), 1, seed=0)
    steps = list(mixture.batches(0))
    assert all(len(pieces) == 1 for pieces in steps)
    frequency = np.mean([pieces[0].source == "a" for pieces in steps])
    assert abs(frequency - 0.1) < 3 * (0.1 * 0.9 / 3000) ** 0.5


@every_spec
@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_out_one_global_batch(spec, world):
    mixture = Mixture(SPLITS, spec, 8, seed=5)
    parts = [list(mixture.batches(1, rank=rank, world=world)) for rank in range(world)]
    for step, pieces in enumerate(mixture.batches(1)):
        for index, piece in enumerate(pieces):
            shared = [parts[rank][step][index] for rank in range(world)]
            assert {part.source for part in shared} == {piece.source}
            assert sorted(row for part in shared for row in part.rows.tolist()) == sorted(piece.rows.tolist())


@pytest.mark.parametrize("wrap", [lambda split: split, Stored], ids=["in memory", "stored"])
def test_evaluation_reads_every_row_once_in_order(wrap):
    batches = list(evaluation_batches(wrap(examples(10)), 4))
    assert [batch.rows.tolist() for batch in batches] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_a_kind_alone_is_short_for_the_mapping():
    assert MixtureSpec.model_validate("uniform") == MixtureSpec(kind="uniform")


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"kind": "temperature"}, "needs a value"),
        ({"kind": "uniform", "value": 2}, "value is 2.0; allowed: nothing"),
        ({"kind": "temperature", "value": 0}, "greater than 0"),
        ({"kind": "random"}, "'proportional', 'uniform' or 'temperature'"),
        ({"size": 3}, "Extra inputs"),
    ],
)
def test_a_wrong_spec_is_refused(fields, message):
    with pytest.raises(ValidationError, match=message):
        MixtureSpec.model_validate(fields)


def test_what_cannot_be_mixed_is_a_typed_error():
    with pytest.raises(DataError, match="source 'b': its training split has no rows"):
        Mixture({"a": examples(3), "b": examples(0)}, MixtureSpec(), 2, seed=0)
    with pytest.raises(BadValue, match=r"batch_size is 2; allowed: 3 or more \(a row of each source a step"):
        Mixture(SPLITS, MixtureSpec(), 2, seed=0)
    with pytest.raises(BadValue, match="batch_size is 0; allowed: 1 or more"):
        Mixture(SPLITS, MixtureSpec(batches="one_task"), 0, seed=0)
    with pytest.raises(BadValue, match="batch_size is 0"):
        list(evaluation_batches(examples(3), 0))
    with pytest.raises(MissingInput, match="no data source"):
        Mixture({}, MixtureSpec(), 2, seed=0)
