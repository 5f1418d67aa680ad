"""Equal parameter budgets: every architecture can be scaled to a number, and a comparison holds it."""

from dataclasses import replace

import pytest
from tests.sharing.models import on_graphs
from tests.training.runs import job, table

import polytask
from polytask.core.errors import BadValue
from polytask.sharing import SHARING, ModelSpec
from polytask.studies.parameters import scaled_model, with_parameters

TABULAR = {"kind": "tabular", "embedding": 2, "hidden_sizes": [16]}


def count(made) -> int:
    return sum(parameter.numel() for parameter in made.build().parameters())


READS = {kind: SHARING.find(kind).reads[0] for kind in SHARING.names()}
READS_TOKENS = [kind for kind in READS if READS[kind] == "sequence"]


@pytest.mark.parametrize("kind", [kind for kind in READS if READS[kind] != "pyramid" and not on_graphs(kind)])
@pytest.mark.parametrize("parameters", [9000])
def test_every_architecture_is_scaled_to_the_number_asked_for(kind, parameters):
    """Tokens can only be 4 numbers wider or narrower, so they are asked for a number that there is."""
    encoder = {"kind": "columns", "width": 16} if kind in READS_TOKENS else TABULAR
    given = job(model={"encoder": encoder, "sharing": kind})
    if kind in READS_TOKENS:
        parameters = count(replace(given, model=scaled_model(given.model, 1.7)))
    made = with_parameters(given, parameters)
    assert abs(count(made) - parameters) <= 0.05 * parameters
    assert made.recipe["model"] == made.model.model_dump(mode="json")
    assert made.model.sharing.kind == kind


def test_all_widths_are_scaled_by_one_factor():
    spec = ModelSpec(encoder={**TABULAR, "hidden_sizes": [40, 20]}, sharing={"kind": "mmoe", "hidden_sizes": [30]})
    double = scaled_model(spec, 2)
    assert (double.encoder.hidden_sizes, double.sharing.hidden_sizes) == ((80, 40), (60,))
    assert double.sharing.experts == spec.sharing.experts
    stems = ModelSpec(stems={"width": 8, "of": {"a": {**TABULAR, "hidden_sizes": [6]}}}, sharing="sluice")
    half = scaled_model(stems, 0.5)
    dense = scaled_model(ModelSpec(encoder="pyramid", sharing="mtan", decoder={"width": 24}), 1.5)
    assert (dense.encoder.channels, dense.decoder.width) == ((24, 48, 96), 36)
    assert (half.stems.width, half.stems.of["a"].hidden_sizes, half.sharing.hidden_size) == (4, (3,), 32)


def test_a_number_that_no_width_gives_names_the_nearest():
    with pytest.raises(
        BadValue, match=r"parameters.*10.*about \d+, the nearest that sharing 'hard' of 4 tasks can have"
    ):
        with_parameters(job(), 10)
    with pytest.raises(BadValue, match=r"parameters.*100000.*about"):
        with_parameters(job(model={"encoder": {"kind": "mlp", "hidden_sizes": []}}, data__drop=["kind"]), 100000)
    with pytest.raises(BadValue, match="init_from"):
        with_parameters(job(model={"init_from": "somewhere"}), 9000)


def test_a_comparison_gives_every_row_the_same_number(tmp_path):
    from tests.training.runs import recipe

    results = polytask.compare(
        recipe(train__epochs=1, tasks={"click": "binary", "price": "regression"}, data__drop=["buy", "topic"]),
        out=tmp_path / "study",
        data={"data": table()},
        sharing=["hard", "mmoe"],
        seeds=1,
        learning_rate_multiples=[1.0],
        parameters=4000,
    )
    assert results["budget"]["parameters"] == 4000
    totals = {row["name"]: row["runs"][0]["parameters"]["total"] for row in results["rows"]}
    assert list(totals) == ["single", "hard", "mmoe"]
    assert all(abs(total - 4000) <= 200 for total in totals.values())
