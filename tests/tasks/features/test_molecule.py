"""Molecules as graphs."""

import json

import numpy as np
import polars as pl
import pytest
import torch

from polytask.core.errors import DataError
from polytask.tasks.data import DataSpec, load_data
from polytask.tasks.features.molecule import ATOM_WIDTH, BOND_WIDTH, Molecule
from polytask.tasks.features.options import MoleculeOptions
from polytask.tasks.preprocess import Preprocessor
from polytask.tasks.task import Task

pytest.importorskip("rdkit", reason="needs rdkit (extra chem)")


def graphs(*smiles: str) -> dict[str, np.ndarray]:
    preprocessor = Preprocessor([Molecule("smiles", MoleculeOptions())])
    inputs = preprocessor.transform(pl.DataFrame({"smiles": smiles}))
    return {key: packed.padded(torch.arange(len(smiles))).numpy() for key, packed in inputs.items()}


def ones(*numbers: int) -> list[int]:
    return sorted(numbers)


def test_ethanol_by_hand() -> None:
    """CCO: two carbons and an oxygen in a row, single bonds, all sp3 with 3, 2 and 1 hydrogens, no charge."""
    found = graphs("CCO")
    # element 0-12 | neighbours 13-18 | charge 19-23 | hydrogens 24-28 | hybridisation 29-34 | aromatic 35, in a ring 36
    assert [np.flatnonzero(atom).tolist() for atom in found["nodes"][0]] == [
        ones(0, 14, 21, 27, 31),
        ones(0, 15, 21, 26, 31),
        ones(2, 14, 21, 25, 31),
    ]
    assert found["edges"][0].tolist() == [[1, 2], [2, 1], [2, 3], [3, 2]]
    assert [np.flatnonzero(bond).tolist() for bond in found["edge_features"][0]] == [[0]] * 4
    assert found["interest"].all()
    assert found["nodes"].shape[2] == ATOM_WIDTH == 37
    assert found["edge_features"].shape[2] == BOND_WIDTH == 7


def test_rings_charges_and_rare_elements() -> None:
    pyridinium = graphs("c1cc[nH+]cc1")
    assert np.flatnonzero(pyridinium["nodes"][0, 3]).tolist() == ones(1, 15, 22, 25, 30, 35, 36)
    assert {tuple(np.flatnonzero(bond)) for bond in pyridinium["edge_features"][0]} == {(3, 5, 6)}
    gold = graphs("[Au+3]")
    assert np.flatnonzero(gold["nodes"][0, 0])[:3].tolist() == [12, 13, 23]  # "other", alone, +2 or more
    assert gold["edges"].shape == (1, 0, 2)


def test_the_order_of_the_atoms_is_that_of_the_text_and_padding_is_zero() -> None:
    found = graphs("CCO", "OCCC")
    assert found["node_mask"].tolist() == [[True, True, True, False], [True] * 4]
    assert not found["nodes"][0, 3].any()
    np.testing.assert_array_equal(found["nodes"][0, 2], found["nodes"][1, 0])


def test_it_survives_json_and_unreadable_molecules_are_refused_or_dropped(tmp_path) -> None:
    smiles = ["C" * n for n in range(1, 30)] + ["C1CC"]
    pl.DataFrame({"smiles": smiles, "toxic": [i % 2 for i in range(30)]}).write_parquet(tmp_path / "m.parquet")

    def load(**options):
        features = {"smiles": {"kind": "molecule", **options}}
        spec = DataSpec(table="m.parquet", split={"fractions": [0.6, 0.2, 0.2]}, features=features)
        return load_data(spec, [Task(name="toxic", kind="binary")], data_dir=tmp_path, beside=None)

    with pytest.raises(DataError, match=r"row 29: column 'smiles' is 'C1CC'.*kind: molecule, invalid: drop"):
        load()
    data = load(invalid="drop")
    assert sum(len(split) for split in data.sources["data"].splits.values()) == 29
    preprocessor = data.sources["data"].preprocessor
    back = Preprocessor.from_json(json.loads(json.dumps(preprocessor.to_json())))
    frame = pl.DataFrame({"smiles": ["CCN"]})
    assert torch.equal(back.transform(frame)["nodes"].values, preprocessor.transform(frame)["nodes"].values)
    with pytest.raises(DataError, match="row 0: column 'smiles' is None"):
        back.transform(pl.DataFrame({"smiles": [None]}, schema={"smiles": pl.String}))
