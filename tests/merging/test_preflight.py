"""Every mismatch is one clear error before the first tensor is merged."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

import polytask
from merging.families import LAYERS, TOKENS, fine_tuned, tensors, write_family, write_model
from polytask.core.errors import PolytaskError
from polytask.merging.jobs import Take, TensorJob
from polytask.merging.opening import open_model
from polytask.merging.preflight import check_space

PLAN: dict[str, Any] = {"base": "base", "tasks": {"a": "a", "b": "b"}, "rule": "task_arithmetic"}


def dry_run(folder: Path, plan: dict[str, Any] | None = None, **options: Any) -> dict[str, Any]:
    (folder / "plan.json").write_text(json.dumps(PLAN if plan is None else plan))
    return polytask.merge(folder / "plan.json", out=folder / "out", dry_run=True, offline=True, **options)


def refusal(folder: Path, plan: dict[str, Any] | None = None) -> str:
    with pytest.raises(PolytaskError) as caught:
        dry_run(folder, plan)
    assert not (folder / "out").exists()
    return str(caught.value)


def config(**change: Any) -> dict[str, Any]:
    return {"model_type": "toy", "num_hidden_layers": LAYERS, "vocab_size": TOKENS, **change}


def test_a_dry_run_says_what_would_be_read_merged_and_written(tmp_path: Path) -> None:
    family = write_family(tmp_path)
    found = dry_run(tmp_path)
    assert list(found["read"]) == ["base", "a", "b"]
    assert found["read"]["a"]["bytes"] == (tmp_path / "a" / "model.safetensors").stat().st_size
    assert found["tensors"] == {"merged": len(family["base"]), "taken": 0, "left_out": {}}
    assert found["write"]["bytes"] == sum(value.nbytes for value in family["base"].values())
    assert found["write"]["files"] == ["config.json"]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"num_hidden_layers": 4}, "config.json: num_hidden_layers is 3 in base and 4 in b: not the same model"),
        ({"model_type": "other"}, "config.json: model_type is 'toy' in base and 'other' in b"),
        ({"quantization_config": {"bits": 4}}, "is quantised; merge the models before quantising"),
    ],
)
def test_configs_are_compared(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    write_family(tmp_path, "a")
    write_model(tmp_path / "b", fine_tuned(tensors(0), 1), config(**change))
    assert message in refusal(tmp_path)


def test_a_base_that_is_not_the_parent_is_refused(tmp_path: Path) -> None:
    write_family(tmp_path, "a")
    write_model(tmp_path / "b", tensors(7))
    message = refusal(tmp_path)
    assert "b (b) was not fine-tuned from the base base: the median cosine of their weights is " in message
    assert dry_run(tmp_path, {**PLAN, "parent": "accept"})["tensors"]["merged"]


def test_a_fine_tune_that_went_far_is_still_a_child(tmp_path: Path) -> None:
    base = tensors(0)
    for name, size in (("base", 0.0), ("a", 0.5), ("b", 1.0)):
        write_model(tmp_path / name, fine_tuned(base, 0, size))
    assert dry_run(tmp_path)["tensors"]["merged"]


def test_a_disk_that_is_too_small_is_known_before(tmp_path: Path) -> None:
    job = TensorJob("w", (10**9, 10**9), torch.float32, {}, Take())
    with pytest.raises(PolytaskError, match=r"out: needs 4,000,000,000,000,000,000 bytes and .* has [\d,]+ free"):
        check_space([job], tmp_path / "new" / "out")
    check_space([], tmp_path / "new" / "out")


def tokenizer(tokens: list[str], added: dict[str, int] | None = None, note: str = "") -> dict[str, Any]:
    listed = [{"content": token, "id": number} for token, number in (added or {}).items()]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    return {"version": note, "model": {"vocab": vocabulary}, "added_tokens": listed}


def write_tokenizers(folder: Path, theirs: dict[str, Any]) -> None:
    write_family(folder)
    for name in ("base", "a"):
        (folder / name / "tokenizer.json").write_text(json.dumps(tokenizer(["x", "y"])))
    (folder / "b" / "tokenizer.json").write_text(json.dumps(theirs))


def test_tokenizers_that_number_tokens_alike_may_differ_in_the_rest(tmp_path: Path) -> None:
    write_tokenizers(tmp_path, tokenizer(["x", "y"], note="2.0"))
    assert dry_run(tmp_path)["write"]["files"] == ["config.json", "tokenizer.json"]


def test_tokens_with_other_numbers_are_refused(tmp_path: Path) -> None:
    write_tokenizers(tmp_path, tokenizer(["y", "x"]))
    assert "tokenizers: 'x' is token 0 in base and 1 in b; only models that number" in refusal(tmp_path)


def test_a_token_that_only_one_has_needs_a_treatment(tmp_path: Path) -> None:
    write_tokenizers(tmp_path, tokenizer(["x", "y"], {"<new>": 2}))
    message = refusal(tmp_path)
    assert "tokenizers: b has the token '<new>', which base lacks (1 differ); say what to do, vocabulary: " in message
    assert dry_run(tmp_path, {**PLAN, "vocabulary": "largest"})


def test_a_tokenizer_that_is_none_is_one_clear_error(tmp_path: Path) -> None:
    write_tokenizers(tmp_path, {"nothing": 1})
    assert "b/tokenizer.json: not readable as a tokenizer" in refusal(tmp_path)


def test_the_output_is_no_other_directory(tmp_path: Path) -> None:
    write_family(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("all of it")
    with pytest.raises(PolytaskError, match=r"out: not empty and no merge \(plan.yaml is not there\); name another"):
        dry_run(tmp_path)


def test_spelling_is_checked_before_any_model_is_opened(tmp_path: Path) -> None:
    with pytest.raises(PolytaskError, match="no merge method 'tise'"):
        dry_run(tmp_path, {**PLAN, "rule": "tise"})


def test_an_input_that_stands_twice_is_told(tmp_path: Path) -> None:
    write_family(tmp_path)
    found = dry_run(tmp_path, {**PLAN, "tasks": {"a": "a", "twin": "a", "none": "base"}})
    assert found["notes"] == ["twin is the same as a: a", "none is the same as base: base"]


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    write_family(tmp_path)
    path = tmp_path / "b" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-40])
    assert "b/model.safetensors: cut short" in refusal(tmp_path)


def test_models_of_other_types_are_read_and_need_the_outputs_type(tmp_path: Path) -> None:
    family = write_family(tmp_path)
    torch.save({name: value.half() for name, value in family["a"].items()}, tmp_path / "half.pt")
    plan = {**PLAN, "tasks": {"a": "half.pt"}, "dtype": "float16"}
    assert dry_run(tmp_path, plan)["tensors"]["merged"] == len(family["a"])


def test_models_written_in_the_same_moment_are_told_apart(tmp_path: Path) -> None:
    """Same names, sizes and times: a continued merge must not take one for the other."""
    write_family(tmp_path)
    for name in "ab":
        os.utime(tmp_path / name / "model.safetensors", ns=(1, 1))
    first, second = (open_model(str(tmp_path / name)).weights.fingerprint() for name in "ab")
    assert first != second
    assert dry_run(tmp_path)["notes"] == []
