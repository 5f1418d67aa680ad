import json

import polars as pl
import pytest

from polytask.core.errors import DataError
from polytask.tasks.data import DataSpec, load_data
from polytask.tasks.features.feature import Place
from polytask.tasks.features.morgan import Morgan
from polytask.tasks.features.options import MorganOptions
from polytask.tasks.preprocess import Preprocessor
from polytask.tasks.task import Task

pytest.importorskip("rdkit", reason="needs rdkit (extra chem)")

MOLECULES = pl.DataFrame({"smiles": ["CCO", "c1ccccc1O", "CC(=O)O"]})


def preprocessor(**options):
    return Preprocessor([Morgan("smiles", MorganOptions(**options))]).fit([(MOLECULES, Place("t"))])


def test_the_same_molecule_written_differently_has_the_same_fingerprint():
    fitted = preprocessor(bits=512)
    bits = fitted.transform(pl.DataFrame({"smiles": ["CCO", "OCC", "C(O)C", "CCN"]}))["bits"]
    assert bits.shape == (4, 512)
    assert (bits[0] == bits[1]).all()
    assert (bits[0] == bits[2]).all()
    assert (bits[0] != bits[3]).any()
    assert set(bits.flatten().tolist()) == {0, 1}


def test_ethanol_has_six_environments():
    """By hand: radius 0 gives CH3, CH2 and OH; radius 1 one environment around each, all different; radius 2 adds none
    that covers other bonds than those of radius 1."""
    bits = preprocessor(bits=2048).transform(pl.DataFrame({"smiles": ["CCO"]}))["bits"]
    assert bits.sum() == 6


def test_options_survive_json():
    fitted = preprocessor(radius=1, bits=256, counts=True)
    back = Preprocessor.from_json(json.loads(json.dumps(fitted.to_json())))
    assert (back.transform(MOLECULES)["bits"] == fitted.transform(MOLECULES)["bits"]).all()


def test_an_unreadable_molecule_is_an_error_or_dropped(tmp_path, capfd):
    smiles = ["C" * n for n in range(1, 30)] + ["C1CC"]
    table = pl.DataFrame({"smiles": smiles, "toxic": [i % 2 for i in range(30)]})
    table.write_parquet(tmp_path / "molecules.parquet")
    task = Task(name="toxic", kind="binary")

    def load(**options):
        spec = DataSpec(
            table="molecules.parquet",
            split={"fractions": [0.6, 0.2, 0.2]},
            features={"smiles": {"kind": "morgan", **options}},
        )
        return load_data(spec, [task], data_dir=tmp_path, beside=None)

    with pytest.raises(DataError, match=r"row 29: column 'smiles' is 'C1CC'.*invalid: drop"):
        load()
    data = load(invalid="drop")
    assert sum(len(split) for split in data.sources["data"].splits.values()) == 29
    assert "1 rows dropped" in data.remarks[0]
    with pytest.raises(DataError, match="row 0: column 'smiles' is None"):
        data.sources["data"].preprocessor.transform(pl.DataFrame({"smiles": [None]}, schema={"smiles": pl.String}))
    assert capfd.readouterr().err == ""  # RDKit's own lines are kept quiet
