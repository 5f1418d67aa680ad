"""Two sources with different columns, a stem for each, one trunk: trained, saved, loaded, predicted."""

import pytest
import torch
from tests.training.runs import recipe, table

import polytask
from polytask.core.errors import Inconsistent, UnknownName

COLUMNS = {"left": ["x0", "x1", "click"], "right": ["x1", "x2", "x3", "kind", "price"]}


def sources(rows: int = 120) -> dict[str, dict[str, object]]:
    whole = {name: values[:rows] for name, values in table().items()}
    return {source: {name: whole[name] for name in columns} for source, columns in COLUMNS.items()}


def stemmed(**settings: object) -> dict[str, object]:
    tasks = {"click": {"kind": "binary", "source": "left"}, "price": {"kind": "regression", "source": "right"}}
    model = {"stems": {"width": 6, "default": {"kind": "tabular", "hidden_sizes": [8]}}, "encoder": "mlp"}
    return recipe(**{"tasks": tasks, "model": model, **settings})


def test_trained_loaded_and_predicted_across(tmp_path):
    results = polytask.train(stemmed(), out=tmp_path / "run", data=sources())
    assert results["valid"]["click"]["auroc"] > 0.5
    trained = polytask.load(tmp_path / "run")
    rows = sources()["left"]
    alone = trained.predict(rows, ["click"])
    assert alone.columns == ["click"]
    right = sources()["right"]
    both = trained.predict({**right, **rows})
    assert both.columns == ["click", "price"]
    assert torch.equal(both["click"].to_torch(), alone["click"].to_torch())
    across = trained.predict(right, ["click"], source="right")  # click's own stem reads other columns
    assert across.height == 120
    with pytest.raises(UnknownName, match=r"no source 'rihgt' \(did you mean 'right'"):
        trained.predict(right, ["click"], source="rihgt")


def test_a_run_with_stems_continues_bit_for_bit(tmp_path):
    whole = polytask.train(stemmed(train__epochs=2), out=tmp_path / "whole", data=sources())
    model = polytask.load(tmp_path / "whole").model.state_dict()
    again = polytask.train(stemmed(train__epochs=2), out=tmp_path / "again", data=sources())
    assert whole["valid"] == again["valid"]
    other = polytask.load(tmp_path / "again").model.state_dict()
    assert all(torch.equal(tensor, other[name]) for name, tensor in model.items())


def test_sources_with_different_inputs_need_stems(tmp_path):
    model = {"encoder": "tabular"}
    with pytest.raises(Inconsistent, match="'left' and 'right' have different inputs"):
        polytask.train(stemmed(model=model), out=tmp_path / "run", data=sources())


def test_a_stem_of_no_source(tmp_path):
    model = {"stems": {"of": {"rihgt": "tabular"}, "default": "tabular"}}
    with pytest.raises(UnknownName, match=r"model.stems.of: no source 'rihgt' \(did you mean 'right'"):
        polytask.train(stemmed(model=model), out=tmp_path / "run", data=sources())
