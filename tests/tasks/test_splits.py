import numpy as np
import polars as pl
import pytest
from pydantic import ValidationError

from polytask.core.errors import DataError, UnknownName
from polytask.tasks.data_spec import RowsSpec, SplitSpec
from polytask.tasks.splits import UNUSED, assign, sample


def split(frame, seed=0, **spec):
    return assign(pl.DataFrame(frame), SplitSpec(**spec), seed, "table")


def test_by_column_with_usual_and_declared_values():
    assert split({"s": ["train", "validation", "test", "dev"]}, column="s").tolist() == [0, 1, 2, 1]
    assert split({"s": [3, 1, 2]}, column="s", train=1, valid=2, test=3).tolist() == [2, 0, 1]
    assert split({"s": [4, 1, 2, 3]}, column="s", train=[1, 4], valid=2, test=3).tolist() == [0, 0, 1, 2]
    with pytest.raises(DataError, match="row 1: split column 's' is 'tset'"):
        split({"s": ["train", "tset", "valid"]}, column="s")
    with pytest.raises(DataError, match="row 1: split column 's' is None"):
        split({"s": ["train", None, "valid"]}, column="s")
    with pytest.raises(UnknownName, match="did you mean 'split'"):
        split({"split": ["train"]}, column="splt")
    with pytest.raises(DataError, match="split 'valid' is empty"):
        split({"s": ["train", "test"]}, column="s")


def test_by_fractions_is_exact_and_seeded():
    frame = {"x": range(1000)}
    first = split(frame, fractions=[0.7, 0.1, 0.2])
    assert np.bincount(first).tolist() == [700, 100, 200]
    assert (first == split(frame, fractions=[0.7, 0.1, 0.2])).all()
    assert (first != split(frame, seed=1, fractions=[0.7, 0.1, 0.2])).any()
    with pytest.raises(DataError, match="split 'test' is empty"):
        split({"x": [1, 2]}, fractions=[0.5, 0.25, 0.25])
    assert np.bincount(split(frame, fractions=[0.8, 0.2, 0.0]), minlength=3).tolist() == [800, 200, 0]


def test_by_time_never_trains_on_the_future_nor_splits_a_moment():
    times = np.random.default_rng(0).integers(0, 50, 400)
    part = split({"t": times}, time="t", fractions=[0.6, 0.2, 0.2])
    assert times[part == 0].max() < times[part == 1].min()
    assert times[part == 1].max() < times[part == 2].min()
    assert abs((part == 0).mean() - 0.6) < 0.05
    with pytest.raises(DataError, match="row 1: split column 't' is missing"):
        split({"t": [1, None, 3]}, time="t")


def test_by_group_keeps_groups_together():
    groups = np.random.default_rng(0).integers(0, 40, 1000)
    part = split({"g": groups}, group="g", fractions=[0.5, 0.25, 0.25])
    assert all(len(set(part[groups == group])) == 1 for group in range(40))
    assert np.abs(np.bincount(part) / 1000 - [0.5, 0.25, 0.25]).max() < 0.08
    assert (part != split({"g": groups}, seed=1, group="g", fractions=[0.5, 0.25, 0.25])).any()


def test_by_scaffold():
    """Twelve benzenes, four pyridines, four cyclohexanes by hand: the most frequent scaffold trains."""
    pytest.importorskip("rdkit", reason="needs rdkit (extra chem)")
    chains = ["C", "CC", "CCC", "CCCC", "O", "OC", "N", "NC", "Cl", "F", "Br", "CO"]
    smiles = [f"c1ccccc1{chain}" for chain in chains] + [f"c1ccncc1{chain}" for chain in chains[:4]]
    smiles += [f"C1CCCCC1{chain}" for chain in chains[:4]]
    order = np.random.default_rng(0).permutation(len(smiles))
    part = split({"m": [smiles[i] for i in order]}, scaffold="m", fractions=[0.6, 0.2, 0.2])
    back = np.empty_like(part)
    back[order] = part
    assert (back[:12] == 0).all()
    assert sorted([set(back[12:16].tolist()).pop(), set(back[16:].tolist()).pop()]) == [1, 2]


def test_a_sample_keeps_so_many_rows():
    assignment = split({"x": range(1000)})
    few = sample(assignment, RowsSpec(train=100, test=10), seed=0)
    assert [(few == number).sum() for number in range(3)] == [100, 100, 10]
    assert ((few == assignment) | (few == UNUSED)).all()
    assert (sample(assignment, 300, seed=0) >= 0).sum() == 300
    assert (sample(assignment, 300, 0) == sample(assignment, 300, 0)).all()
    assert (assignment == split({"x": range(1000)})).all()  # unchanged


@pytest.mark.parametrize(
    "spec",
    [
        {"column": "a", "group": "b"},
        {"column": "a", "seed": 1},
        {"train": 1},
        {"time": "t", "seed": 1},
        {"fractions": [0.5, 0.1, 0.1]},
        {"fractions": [0.0, 0.5, 0.5]},
        {"colum": "a"},
    ],
)
def test_contradictory_specs_are_refused(spec):
    with pytest.raises(ValidationError):
        SplitSpec(**spec)
