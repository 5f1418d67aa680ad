"""What every merge that reads data does alike, whatever it learns."""

import inspect
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import polytask
from annotations import numpy_and_torch
from merging.learned_problem import TASKS, Problem
from polytask.core.errors import BadValue, MissingInput, NotFinite, PolytaskError, UnknownName
from polytask.core.names import LEARNED
from polytask.merging.learning import Learned, find_learned, learn
from polytask.merging.samples import samples
from polytask.testing.contract import generators

QUICK = {"steps": 3, "batches": 2, "trials": 3}
"""Few steps where a method has some: what is checked here holds after any number."""

every = pytest.mark.parametrize("name", LEARNED)
LABELLED = [name for name in LEARNED if (spec := find_learned(name)).reads_labels(spec.checked({}))]
every_labelled = pytest.mark.parametrize("name", LABELLED)


@pytest.fixture(scope="module")
def problem() -> Problem:
    return Problem()


def quick(name: str, **parameters: Any) -> dict[str, Any]:
    known = find_learned(name).parameters
    return {**{key: value for key, value in QUICK.items() if key in known}, **parameters}


def run(name: str, problem: Problem, seed: int = 0, **parameters: Any) -> tuple[Learned, dict[str, Tensor]]:
    return learn(name, problem.models, problem.samples(), base=problem.base, seed=seed, **quick(name, **parameters))


@every
def test_same_seed_same_bits_and_the_global_state_does_not_move(name: str, problem: Problem) -> None:
    before = numpy_and_torch(generators())
    _, first = run(name, problem)
    _, second = run(name, problem)
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert numpy_and_torch(generators()) == before


@every
def test_lean_is_the_same_but_for_rounding(name: str, problem: Problem) -> None:
    """Weights that are composed once a step, whose gradients are added up, and weights composed in every pass."""
    _, held = run(name, problem)
    _, lean = run(name, problem, lean=True)
    for key, value in held.items():
        torch.testing.assert_close(lean[key], value, rtol=1e-3, atol=1e-4)


@every
def test_inputs_and_models_are_left_alone(name: str, problem: Problem) -> None:
    given = [problem.base, *problem.models.values(), *(net.state_dict() for net in problem.nets.values())]
    before = [{key: value.clone() for key, value in tensors.items()} for tensors in given]
    modes = [[part.training for part in net.modules()] for net in problem.nets.values()]
    run(name, problem)
    for old, new in zip(before, given, strict=True):
        assert all(torch.equal(old[key], new[key]) for key in old)
    assert modes == [[part.training for part in net.modules()] for net in problem.nets.values()]
    assert all(value.grad is None for net in problem.nets.values() for value in net.parameters())


@every
def test_what_comes_out_is_finite_and_has_the_bases_shapes(name: str, problem: Problem) -> None:
    found, merged = run(name, problem)
    assert list(merged) == list(problem.base)
    for key, value in merged.items():
        assert value.shape == problem.base[key].shape
        assert bool(value.isfinite().all()), key
    for task, own in [*found.coefficients.items(), *found.masks.items()]:
        assert task in TASKS
        assert isinstance(own, float) or set(own) <= set(problem.base)


@every_labelled
def test_absent_labels_do_no_harm(name: str, problem: Problem) -> None:
    """A batch without a label, and rows without one, are normal."""
    batches = {task: [dict(rows) for rows in own] for task, own in problem.batches.items()}
    batches["a"][0]["label"] = torch.full_like(batches["a"][0]["label"], -1)
    batches["b"][1]["label"] = torch.where(torch.arange(12) < 6, batches["b"][1]["label"], -1)
    changed = Problem.__new__(Problem)
    changed.__dict__ = {**problem.__dict__, "batches": batches}
    _, merged = run(name, changed)
    assert all(bool(value.isfinite().all()) for value in merged.values())


@every
def test_a_loss_that_is_not_finite_names_its_task(name: str, problem: Problem) -> None:
    def forward(net: Any, task: str, rows: Any) -> Tensor:
        found = net(rows["x"], task)
        return found * math.nan if task == "b" else found

    with pytest.raises(NotFinite, match="'b'"):
        learn(name, problem.models, problem.samples(forward=forward), base=problem.base, **quick(name))


@every
def test_missing_data_and_labels_are_errors(name: str, problem: Problem) -> None:
    with pytest.raises(MissingInput, match="task 'a': there is no batch"):
        samples(problem.nets, {"a": []})
    with pytest.raises(BadValue, match=r"task 'a' is 'generator'; allowed: a list or loader with a length"):
        samples(problem.nets, {"a": (rows for rows in ())})
    some = samples(problem.nets, {"a": problem.batches["a"]}, forward=lambda net, task, rows: net(rows["x"], task))
    with pytest.raises(UnknownName, match="no batches of the task 'b'"):
        learn(name, problem.models, some, base=problem.base, **quick(name))


@every_labelled
def test_labels_that_are_not_there_are_an_error(name: str, problem: Problem) -> None:
    with pytest.raises(MissingInput, match="reads labels: give loss="):
        learn(name, problem.models, problem.samples(loss=None), base=problem.base, **quick(name))


@every
def test_bad_parameters_are_refused(name: str, problem: Problem) -> None:
    spec = find_learned(name)
    with pytest.raises(UnknownName, match="no parameter 'no_such'"):
        run(name, problem, no_such=1)
    for key, about in spec.parameters.items():
        for bad in about.constraint.bad_values() if about.constraint else []:
            with pytest.raises(PolytaskError, match=re.escape(key)):
                spec.checked({key: bad})


@every
def test_what_was_learned_merges_again_without_data(name: str, problem: Problem, tmp_path: Path) -> None:
    """On directories: the output is what `learn` gives, and the plan that it writes gives the same bytes again."""
    for key, tensors in {"base": problem.base, **problem.models}.items():
        (tmp_path / key).mkdir()
        save_file(tensors, tmp_path / key / "model.safetensors")
    folder = str(tmp_path)
    plan = {
        "base": f"{folder}/base",
        "tasks": {task: f"{folder}/{task}" for task in TASKS},
        "rule": {"kind": name, "parameters": quick(name)},
        "parent": "accept",
    }
    found = polytask.merge(plan, out=tmp_path / "out", samples=problem.samples())
    learned, merged = run(name, problem)
    written = load_file(tmp_path / "out" / "model.safetensors")
    for key, value in merged.items():
        torch.testing.assert_close(written[key], value, rtol=1e-6, atol=1e-6)
    assert found["learned"]["coefficients"] == json.loads(json.dumps(learned.coefficients))
    if not learned.merged:
        polytask.merge(tmp_path / "out" / "plan.yaml", out=tmp_path / "again")
        again = load_file(tmp_path / "again" / "model.safetensors")
        assert all(torch.equal(again[key], written[key]) for key in written)


@every
def test_the_file_says_source_departures_and_cost(name: str) -> None:
    text = inspect.getdoc(inspect.getmodule(find_learned(name).function)) or ""
    for heading in ("Source", "Departures", "Cost"):
        assert re.search(rf"^{heading} {{2,}}\S", text, re.MULTILINE), f"no {heading}"
    assert "pass" in text[text.index("\nCost") :]
