"""mergekit's YAML as a plan: what its documentation says, worked out by formula. No mergekit is needed."""

from pathlib import Path
from typing import Any

import pytest
import torch

from merging.families import write_family
from merging.in_memory import assembled, merged
from polytask.core.constraints import check_parameters
from polytask.core.errors import PolytaskError
from polytask.merging.contract import find_method
from polytask.merging.layers import place_of
from polytask.merging.mergekit import translated
from polytask.merging.mergekit_methods import METHODS


def models(**parameters: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"model": name, "parameters": given} for name, given in parameters.items()]


def weights_of(assembly: Any, name: str) -> list[float]:
    job = next(job for job in assembly.jobs if job.name == name)
    return job.pipeline.rule.numbers(list(job.inputs))["weights"].tolist()


def test_linear_is_the_weighted_average(tmp_path: Path) -> None:
    family = write_family(tmp_path)
    file = {"merge_method": "linear", "models": models(a={"weight": 3}, b={"weight": 1}), "dtype": "float32"}
    found = merged(assembled(tmp_path, file))
    for name, value in found.items():
        expected = (3 * family["a"][name].double() + family["b"][name].double()) / 4
        torch.testing.assert_close(value.double(), expected, rtol=1e-6, atol=1e-7)


def test_task_arithmetic_with_lambda_and_a_base_among_the_models(tmp_path: Path) -> None:
    family = write_family(tmp_path)
    file = {
        "merge_method": "task_arithmetic",
        "base_model": "base",
        "models": [{"model": "base"}, *models(a={"weight": 0.5}, b={"weight": -0.2})],
        "parameters": {"lambda": 0.7},
    }
    found = merged(assembled(tmp_path, file))
    for name, base in family["base"].items():
        change = 0.5 * (family["a"][name] - base) - 0.2 * (family["b"][name] - base)
        torch.testing.assert_close(found[name], base + 0.7 * change)


@pytest.mark.parametrize("method", ["task_arithmetic", "dare_linear", "della_linear", "breadcrumbs"])
def test_a_sum_may_have_weights_that_sum_to_one(tmp_path: Path, method: str) -> None:
    """With a density of 1, which is the default, nothing is dropped or cut."""
    family = write_family(tmp_path)
    given = models(a={"weight": 0.5}, b={"weight": [{"filter": "mlp", "value": 1.5}, {"value": 0.5}]})
    file = {"merge_method": method, "base_model": "base", "models": given, "parameters": {"normalize": True}}
    found = merged(assembled(tmp_path, file))
    for name, base in family["base"].items():
        weights = (0.25, 0.75) if "mlp" in name else (0.5, 0.5)
        change = sum(weight * (family[task][name] - base) for weight, task in zip(weights, "ab", strict=True))
        torch.testing.assert_close(found[name], base + change)
    zero = {**file, "models": models(a={"weight": 1}, b={"weight": -1})}
    with pytest.raises(PolytaskError, match="sum is not 0, or normalize: false"):
        merged(assembled(tmp_path, zero))


def test_ties_trims_by_tensor_elects_on_weighted_changes_and_divides_by_weights(tmp_path: Path) -> None:
    family = write_family(tmp_path)
    file = {
        "merge_method": "ties",
        "base_model": "base",
        "models": models(a={"weight": 0.5, "density": 0.5}, b={"weight": 0.25, "density": 0.25}),
    }
    name = "model.layers.1.mlp.weight"
    base = family["base"][name].double()
    rows = []
    for task, weight, density in (("a", 0.5, 0.5), ("b", 0.25, 0.25)):
        change = (family[task][name].double() - base).flatten()
        kept = change.abs().argsort(descending=True)[: int(density * len(change))]
        rows.append((weight, torch.zeros_like(change).index_copy(0, kept, change[kept])))
    sign = sum(weight * row for weight, row in rows).sign()
    agreeing = [(weight, row * (row.sign() == sign)) for weight, row in rows]
    divisor = sum(weight * (row != 0) for weight, row in agreeing)
    expected = sum(weight * row for weight, row in agreeing) / torch.where(divisor > 0, divisor, 1.0)
    found = merged(assembled(tmp_path, file))[name].double() - base
    torch.testing.assert_close(found.flatten(), expected, rtol=1e-4, atol=1e-6)


def test_gradients_filters_and_precedence(tmp_path: Path) -> None:
    """A slice's source, the slice, the model, the whole; a filter is a part of the name; outside layers the first value
    of a gradient holds."""
    write_family(tmp_path)
    by_filter = [{"filter": "mlp", "value": [0, 1]}, {"filter": "*", "value": 5}]
    file = {"merge_method": "linear", "models": models(a={"weight": by_filter}, b={}), "parameters": {"weight": [2, 4]}}
    assembly = assembled(tmp_path, file)
    assert weights_of(assembly, "model.layers.1.mlp.weight") == [0.5, 3.0]
    assert weights_of(assembly, "model.layers.2.norm.weight") == [5.0, 4.0]
    assert weights_of(assembly, "model.norm.weight") == [5.0, 2.0]
    assert weights_of(assembly, "lm_head.weight") == [5.0, 2.0]
    first = {"model": "a", "layer_range": [0, 2], "parameters": {"weight": 7}}
    slices = [
        {"sources": [first, {"model": "b", "layer_range": [1, 3]}], "parameters": {"weight": [1, 9]}},
        {"sources": [{"model": "b", "layer_range": [2, 3]}]},
    ]
    assembly = assembled(tmp_path, {"merge_method": "linear", "slices": slices, "parameters": {"weight": 0.5}})
    assert weights_of(assembly, "model.layers.0.mlp.weight") == [7.0, 1.0]
    assert weights_of(assembly, "model.layers.1.mlp.weight") == [7.0, 9.0]
    assert weights_of(assembly, "model.layers.2.mlp.weight") == [0.5]


@pytest.mark.parametrize(
    "model, expected",
    [
        ("a", "a"),
        ({"path": "owner/a", "revision": "v1"}, "owner/a@v1"),
        ({"model": {"path": "a"}, "lora": {"path": "l"}}, "a+l"),
        ({"model": "a", "lora": "l"}, "a+l"),
    ],
)
def test_model_references(model: Any, expected: str) -> None:
    plan, _ = translated({"merge_method": "linear", "models": [{"model": model}, {"model": "other/a"}]}, "x.yml")
    assert [given.model for given in plan.tasks.values()] == [expected, "other/a"]
    assert len(plan.tasks) == 2


def test_the_base_is_the_first_of_an_interpolation_and_gives_the_tokenizer() -> None:
    file = {
        "merge_method": "slerp",
        "base_model": "b",
        "models": [{"model": "a"}, {"model": "b"}],
        "parameters": {"t": 0.3},
    }
    plan, departures = translated(file, "x.yml")
    assert list(plan.tasks) == ["b", "a"]
    assert (plan.base, plan.donor, departures) == (None, "b", [])
    assert plan.rule.parameters == {"groups": "tensor", "straight": 0.9995, "t": 0.3}


def test_each_slice_interpolates_between_two_models_of_its_own(tmp_path: Path) -> None:
    """From the base, wherever it stands, to another model, at the slice's own way over depth."""
    family = write_family(tmp_path, "abc")

    def source(model: str, *layers: int) -> dict[str, Any]:
        return {"model": model, "layer_range": list(layers)}

    slices = [{"sources": [source("a", 0, 2), source("b", 0, 2)]}, {"sources": [source("c", 2, 3), source("a", 2, 3)]}]
    file = {"merge_method": "slerp", "base_model": "a", "slices": slices, "parameters": {"t": [0, 1]}}
    found = merged(assembled(tmp_path, {**file, "dtype": "float32"}))
    for layer, model in enumerate("abc"):
        name = f"model.layers.{layer}.mlp.weight"
        torch.testing.assert_close(found[name], family[model][name])
    three = {"sources": [*slices[1]["sources"], source("b", 2, 3)]}
    with pytest.raises(PolytaskError, match=r"x\.yml\.slices\.1: the number of models is 3; allowed: 2 for slerp"):
        translated({**file, "slices": [slices[0], three]}, "x.yml")


@pytest.mark.parametrize("method", ["linear", "karcher"])
def test_a_base_model_that_is_merged_too_counts(tmp_path: Path, method: str) -> None:
    """Where nothing is subtracted from it, base_model only says whose tokenizer is kept; and so in a slice."""
    family = write_family(tmp_path, "ab")
    file = {"merge_method": method, "base_model": "base", "models": models(base={"weight": 3}, a={"weight": 1})}
    if method == "karcher":
        file["models"] = models(base={}, a={})
    plan, _ = translated(file, "x.yml")
    assert [given.model for given in plan.tasks.values()] == ["base", "a"]
    sources = [{"model": model, "layer_range": [0, 3]} for model in ("base", "a")]
    sliced = {"merge_method": method, "base_model": "base", "slices": [{"sources": sources}]}
    assert list(translated(sliced, "x.yml")[0].slices[0].inputs) == list(plan.tasks)
    if method == "linear":
        found = merged(assembled(tmp_path, {**file, "dtype": "float32"}))
        for name, value in found.items():
            torch.testing.assert_close(value, 0.75 * family["base"][name] + 0.25 * family["a"][name])


def test_a_slice_of_one_layer_is_at_the_end_of_the_depth(tmp_path: Path) -> None:
    family = write_family(tmp_path, "ab")
    one = {"sources": [{"model": "a", "layer_range": [0, 1], "parameters": {"scale": [1, 5]}}]}
    rest = {"sources": [{"model": "b", "layer_range": [1, 3], "parameters": {"scale": [1, 5]}}]}
    file = {"merge_method": "passthrough", "slices": [one, rest], "dtype": "float32"}
    found = merged(assembled(tmp_path, file))
    for layer, (model, scale) in enumerate((("a", 5), ("b", 1), ("b", 5))):
        name = f"model.layers.{layer}.mlp.weight"
        torch.testing.assert_close(found[name], scale * family[model][name])


def test_a_last_slice_of_more_models_than_the_first_is_told() -> None:
    def part(*names: str) -> dict[str, Any]:
        return {"sources": [{"model": name, "layer_range": [0, 2]} for name in names]}

    file = {"merge_method": "linear", "parameters": {"weight": 1}}
    told = translated({**file, "slices": [part("a", "b"), part("a", "b", "c")]}, "x.yml")[1]
    assert len(told) == 1
    assert told[0].startswith("slices: what comes after the layers is merged from all 3 sources of the last slice;")
    assert told[0].endswith("mergekit leaves out those beyond the first slice's 2")
    assert translated({**file, "slices": [part("a", "b", "c"), part("a", "b")]}, "x.yml")[1] == []


def test_nuslerp_keeps_each_models_weight() -> None:
    file = {"merge_method": "nuslerp", "models": models(a={"weight": 1}, b={"weight": [0, 3]})}
    plan, _ = translated(file, "x.yml")
    assert [task.parameters for task in plan.tasks.values()] == [{"weights": 1}, {"weights": [0, 3]}]
    assert plan.rule.parameters == {}
    common = {"models": models(a={}, b={}), "parameters": {"weight": 2, "nuslerp_flatten": False}}
    plan, _ = translated({**file, **common}, "x.yml")
    assert plan.rule.parameters == {"weights": 2, "along": "row"}
    with pytest.raises(PolytaskError, match=r"x\.yml: nuslerp needs the weight of 'b'"):
        translated({**file, "models": models(a={"weight": 1}, b={})}, "x.yml")


def test_nuslerp_over_depth_and_by_filter(tmp_path: Path) -> None:
    """Each tensor lies at its own share of the way, the second weight's of both, in float64."""
    family = write_family(tmp_path, "ab")
    by_part = [{"filter": "mlp", "value": [1, 3]}, {"value": 1}]
    file = {
        "merge_method": "nuslerp",
        "base_model": "base",
        "models": models(a={"weight": [2, 1]}, b={"weight": by_part}),
        "dtype": "float32",
    }
    found = merged(assembled(tmp_path, file))
    places = {name: place_of(name) for name in found}
    last = max(place.number for place in places.values() if place is not None)
    shares = []
    for name, value in found.items():
        base, a, b = (family[model][name].double().flatten() for model in ("base", "a", "b"))
        place = places[name]
        depth = 0.0 if place is None else place.number / last
        weights = 2 - depth, (1 + 2 * depth if "mlp" in name else 1.0)
        share = weights[1] / sum(weights)
        shares.append(share)
        one, other = a - base, b - base
        angle = torch.arccos(one @ other / one.norm() / other.norm())
        wanted = base + (((1 - share) * angle).sin() * one + (share * angle).sin() * other) / angle.sin()
        torch.testing.assert_close(value.double().flatten(), wanted, rtol=1e-5, atol=1e-6)
    assert len(dict.fromkeys(shares)) > 2


def test_nuslerp_by_slices() -> None:
    def source(model: str, **parameters: Any) -> dict[str, Any]:
        return {"model": model, "layer_range": [0, 2], "parameters": parameters}

    file = {"merge_method": "nuslerp", "slices": [{"sources": [source("a", weight=1), source("b", weight=[0, 1])]}]}
    plan, _ = translated(file, "x.yml")
    assert [given.parameters for given in plan.slices[0].inputs.values()] == [{"weights": 1}, {"weights": [0, 1]}]
    with pytest.raises(PolytaskError, match="nuslerp needs the weight of 'b'"):
        translated({**file, "slices": [{"sources": [source("a", weight=1), source("b")]}]}, "x.yml")


@pytest.mark.parametrize("filter_wise", [False, True])
def test_model_stock_by_tensor_and_by_row(tmp_path: Path, filter_wise: bool) -> None:
    """N cos / (1 + (N - 1) cos) of the mean, with the mean cosine of the whole tensor or of each row, in float64."""
    family = write_family(tmp_path, "abc")
    file = {"merge_method": "model_stock", "base_model": "base", "models": models(a={}, b={}, c={}), "dtype": "float32"}
    found = merged(assembled(tmp_path, {**file, "parameters": {"filter_wise": filter_wise}}))
    for name, value in found.items():
        base = family["base"][name].double()
        changes = torch.stack([family[model][name].double() - base for model in "abc"])
        rows = changes if filter_wise and base.dim() > 1 else changes.reshape(3, 1, -1)
        units = rows / rows.norm(dim=-1, keepdim=True)
        cosine = sum((units[i] * units[j]).sum(-1) for i, j in ((0, 1), (0, 2), (1, 2))) / 3
        share = (cosine / (1 + 2 * cosine)).clamp(min=0)
        wanted = base + (share[:, None] * rows.sum(0)).view(base.shape)
        torch.testing.assert_close(value.double(), wanted, rtol=1e-5, atol=1e-6)


def test_what_is_given_with_the_only_model_holds_for_all() -> None:
    plan, _ = translated({"merge_method": "passthrough", "models": models(a={"scale": [1, 2]})}, "x.yml")
    assert plan.rule.parameters == {"scale": [1, 2]}
    source = {"model": "a", "layer_range": [0, 2], "parameters": {"scale": [{"filter": "mlp", "value": 0}]}}
    plan, _ = translated({"merge_method": "passthrough", "slices": [{"sources": [source]}]}, "x.yml")
    assert plan.slices[0].parameters == {"scale": [{"pattern": "*mlp*", "value": 0}]}


TIES = {"merge_method": "ties", "base_model": "base", "models": models(a={"weight": 1, "density": 0.2})}


@pytest.mark.parametrize(
    "change, lines",
    [
        ({}, []),
        ({"dtype": "float32"}, []),
        ({"dtype": "bfloat16"}, ["dtype: bfloat16: arithmetic is in float32, rounded once at the end"]),
        ({"parameters": {"int8_mask": True}}, ["int8_mask: masks take no memory"]),
        ({"models": models(a={"weight": -1})}, ["ties: a negative weight turns its model's change around"]),
        ({"chat_template": "auto"}, ["chat_template: not written anew"]),
        ({"tokenizer_source": "union"}, []),
        ({"tokenizer_source": "base"}, []),
        ({"merge_method": "dare_ties"}, ["dare_ties: kept elements are divided by", "dare_ties: which elements are"]),
        ({"merge_method": "dare_ties", "models": models(a={"weight": 1, "density": 1})}, []),
        ({"merge_method": "breadcrumbs"}, ["breadcrumbs: how many of the largest elements"]),
    ],
)
def test_each_departure_that_is_met_is_a_line(change: dict[str, Any], lines: list[str]) -> None:
    _, found = translated({**TIES, **change}, "x.yml")
    assert len(found) == len(lines)
    assert all(line.startswith(start) for line, start in zip(found, lines, strict=True))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"merge_method": "tise"}, "x.yml: no merge_method 'tise' (did you mean 'ties'?)"),
        (
            {"models": models(a={"densty": 1})},
            "x.yml.models.0.parameters (ties): no parameter 'densty' (did you mean 'de",
        ),
        ({"basemodel": "x"}, "x.yml: no key 'basemodel' (did you mean 'base_model'?)"),
        ({"base_model": None}, "x.yml: ties needs base_model"),
        ({"models": None}, "x.yml: it has models or slices, one of the two"),
        ({"models": []}, "x.yml.tasks is {}; allowed: at least 1"),
        ({"models": [*models(a={}, b={}), *models(a={})]}, "x.yml.models: 'a' stands twice"),
        ({"slices": []}, "x.yml: it has models or slices, one of the two"),
        ({"dtype": "int8"}, "x.yml: no dtype 'int8'; allowed: float32"),
        ({"tokenizer_source": "elsewhere"}, "x.yml.tokenizer_source: no model 'elsewhere'"),
        ({"tokenizer": {"source": "base", "tokns": {}}}, "no key 'tokns' (did you mean 'tokens'?)"),
        ({"tokenizer": {"tokens": {"<x>": {"source": "d"}}}}, "x.yml.tokenizer.<x>: no model 'd'"),
        ({"tokenizer": {"tokens": {"<x>": "a"}}}, "x.yml.tokenizer.<x> is 'a'; allowed: {source: ..., force: ...}"),
        ({"tokenizer": {"source": "base"}, "tokenizer_source": "base"}, "it has tokenizer and tokenizer_source"),
        ({"models": [{"model": {"pth": "x"}}]}, "x.yml.models.0: no key 'pth' (did you mean 'path'?)"),
        ({"models": models(a={"weight": [{"filtr": "mlp", "value": 1}]})}, "no key 'filtr' (did you mean 'filter'?)"),
        (
            {"merge_method": "model_stock", "models": models(a={"filter_wise": True})},
            "x.yml.models.0.parameters: filter_wise is True; allowed: true or false, in x.yml.parameters",
        ),
        (
            {"merge_method": "model_stock", "models": models(a={}), "parameters": {"filter_wise": [0, 1]}},
            "filter_wise is [0, 1]; allowed: true or false",
        ),
    ],
)
def test_what_cannot_be_followed_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(PolytaskError) as caught:
        translated({**TIES, **change}, "x.yml")
    assert message in str(caught.value)


def test_the_tokenizer_is_the_plans() -> None:
    tokens = {
        "<a>": {"source": "models/a"},
        "<b>": {"source": {"kind": "model_token", "model": "base", "token": "<c>"}, "force": True},
        "<z>": {"source": {"kind": "zero"}},
    }
    given = {"source": "union", "tokens": tokens, "pad_to_multiple_of": 8}
    models = [{"model": "models/a", "parameters": {"weight": 1}}]
    plan, departures = translated({**TIES, "models": models, "tokenizer": given}, "x.yml")
    assert plan.tokenizer is not None
    assert plan.tokenizer.model_dump() == {
        "source": "union",
        "tokens": {
            "<a>": {"source": "a", "force": False},
            "<b>": {"source": {"model": "base", "token": "<c>", "token_id": None}, "force": True},
            "<z>": {"source": None, "force": False},
        },
        "pad_to_multiple_of": 8,
    }
    assert departures == []
    plan, _ = translated({**TIES, "models": models, "tokenizer_source": "models/a"}, "x.yml")
    assert (plan.tokenizer is not None and plan.tokenizer.source, plan.donor) == ("a", None)


def test_compat_follows_mergekits_formula() -> None:
    file = {"merge_method": "model_stock", "base_model": "base", "models": models(a={}, b={})}
    plan, departures = translated(file, "x.yml")
    assert "clip" not in plan.rule.parameters
    assert departures == ["model_stock: a negative mean cosine counts as 0, as in the paper's derivation"]
    plan, departures = translated(file, "x.yml", compatible=True)
    assert (plan.rule.parameters["clip"], departures) == (False, [])


PARTIAL = ("nearswap", "arcee_fusion")  # which keep a part of a change by design


@pytest.mark.parametrize(
    "name", [name for name, method in METHODS.items() if method.base == "required" and name not in PARTIAL]
)
def test_a_method_of_deltas_needs_no_parameters(tmp_path: Path, name: str) -> None:
    """A file that gives none merges, and drops nothing: of one model that is the model."""
    family = write_family(tmp_path, "a")
    file = {"merge_method": name, "base_model": "base", "models": models(a={}), "dtype": "float32"}
    file["models"][0]["parameters"] = {} if name in ("sce", "model_stock") else {"weight": 1.0}
    for tensor, value in merged(assembled(tmp_path, file)).items():
        torch.testing.assert_close(value, family["a"][tensor])


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_a_rule_with_those_parameters(name: str) -> None:
    method, rule = METHODS[name], find_method(METHODS[name].rule)
    settled = {**method.settled, **method.compatible}
    check_parameters(rule.parameters, settled, name)
    renamed = {*method.per_model.values(), *method.whole.values()} - {"weight", "flatten", "row_wise"}
    assert sorted(renamed - set(rule.parameters)) == []
