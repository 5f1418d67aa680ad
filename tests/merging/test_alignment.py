"""Models of different tokenizers, against a reference that knows tokens and no numbers."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import polytask
from merging.families import fine_tuned, write_model
from polytask.core.errors import PolytaskError

BASE, A, B = ["x", "y", "<s>"], ["y", "x", "z", "<s>"], ["x", "<s>", "w", "z", "y"]
WIDTH = 4


def tokenizer(tokens: list[str]) -> dict[str, Any]:
    """Words are the model's; what has angle brackets is an added token."""
    added = [{"id": i, "content": t, "special": True} for i, t in enumerate(tokens) if t.startswith("<")]
    words = {token: number for number, token in enumerate(tokens) if not token.startswith("<")}
    return {"version": "1.0", "added_tokens": added, "model": {"type": "WordLevel", "vocab": words, "unk_token": "x"}}


def write(folder: Path, name: str, tokens: list[str], *, rows: int | None = None) -> dict[str, Tensor]:
    rows = len(tokens) if rows is None else rows
    generator = torch.Generator().manual_seed(len(name) + rows)
    values = {
        "model.embed_tokens.weight": torch.randn(rows, WIDTH, generator=generator),
        "model.embed_positions.weight": torch.zeros(7, WIDTH),
        "model.layers.0.mlp.weight": torch.ones(5, WIDTH),
        "lm_head.weight": torch.randn(rows, WIDTH, generator=generator),
        "lm_head.bias": torch.randn(rows, generator=generator),
    }
    write_model(folder / name, values, {"model_type": "toy", "vocab_size": rows})
    (folder / name / "tokenizer.json").write_text(json.dumps(tokenizer(tokens)))
    (folder / name / "vocab.txt").write_text("\n".join(tokens))
    return values


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, tokens in (("base", BASE), ("a", A), ("b", B)):
        write(tmp_path, name, tokens)
    return tmp_path


def merged(folder: Path, **plan: Any) -> dict[str, Tensor]:
    tasks = {task: str(folder / task) for task in "ab"}
    given = {"base": str(folder / "base"), "tasks": tasks, "rule": "task_arithmetic", "parent": "accept", **plan}
    polytask.merge(given, out=folder / "out")
    return load_file(folder / "out" / "model.safetensors")


def by_token(folder: Path, name: str) -> dict[str, dict[str, Tensor]]:
    """input -> token -> its row, float64."""
    vocabularies = {"base": BASE, "a": A, "b": B}
    return {
        owner: dict(zip(tokens, load_file(folder / owner / "model.safetensors")[name].double(), strict=False))
        for owner, tokens in vocabularies.items()
    }


def filled(rows: dict[str, dict[str, Tensor]], owner: str, token: str) -> Tensor:
    """As mergekit documents it."""
    if token in rows[owner]:
        return rows[owner][token]
    if token in rows["base"]:
        return rows["base"][token]
    have = [known[token] for known in rows.values() if token in known]
    return torch.stack(have).mean(0)


def summed(rows: dict[str, dict[str, Tensor]], tokens: list[str]) -> Tensor:
    """base + (a - base) + (b - base), token by token."""
    return torch.stack([filled(rows, "a", t) + filled(rows, "b", t) - filled(rows, "base", t) for t in tokens])


@pytest.mark.parametrize("source, tokens", [("union", ["x", "y", "<s>", "z", "w"]), ("base", BASE), ("a", A), ("b", B)])
def test_rows_are_merged_by_token(folder: Path, source: str, tokens: list[str]) -> None:
    found = merged(folder, tokenizer=source)
    for name in ("model.embed_tokens.weight", "lm_head.weight", "lm_head.bias"):
        torch.testing.assert_close(found[name].double(), summed(by_token(folder, name), tokens), rtol=0, atol=1e-6)
    assert found["model.embed_positions.weight"].shape == (7, WIDTH)
    assert json.loads((folder / "out" / "config.json").read_text())["vocab_size"] == len(tokens)
    written = json.loads((folder / "out" / "tokenizer.json").read_text())
    known = written["model"]["vocab"] | {entry["content"]: entry["id"] for entry in written["added_tokens"]}
    assert sorted(known, key=known.__getitem__) == tokens
    assert (folder / "out" / "vocab.txt").is_file() == (source != "union")  # which would lack tokens


def test_a_mean_is_rounded_once_and_keeps_the_inputs_type(tmp_path: Path) -> None:
    """The base and c lack z, which a and b have: theirs is the mean, in float32."""
    for name, tokens in (("base", BASE), ("a", A), ("b", B), ("c", BASE)):
        values = {key: value.bfloat16() for key, value in write(tmp_path, name, tokens).items()}
        (tmp_path / name / "model.safetensors").unlink()
        save_file(values, tmp_path / name / "model.safetensors")
    tasks = {task: str(tmp_path / task) for task in "abc"}
    plan = {"base": str(tmp_path / "base"), "tasks": tasks, "rule": "task_arithmetic", "parent": "accept"}
    polytask.merge({**plan, "tokenizer": "union"}, out=tmp_path / "out")
    found = load_file(tmp_path / "out" / "model.safetensors")["lm_head.weight"]
    rows = by_token(tmp_path, "lm_head.weight")
    mean = (rows["a"]["z"] + rows["b"]["z"]) / 2
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found[3], (rows["a"]["z"] + rows["b"]["z"] - mean).bfloat16())


def test_what_is_said_of_tokens_holds(folder: Path) -> None:
    tokens = {
        "y": {"source": "a", "force": True},
        "z": {"source": {"model": "a", "token": "x"}},
        "<new>": {"source": {"model": "b", "token_id": 2}},
        "<zero>": {"source": None},
    }
    found = merged(folder, tokenizer={"source": "base", "tokens": tokens, "pad_to_multiple_of": 8})
    name = "lm_head.weight"
    rows, value = by_token(folder, name), found[name].double()
    assert value.shape[0] == 8
    expected = [
        summed(rows, ["x"])[0],
        rows["a"]["y"],  # in every input, so nothing has changed
        summed(rows, ["<s>"])[0],
        rows["a"]["z"] + rows["b"]["z"] - rows["a"]["x"],  # of the base alone, which lacks it
        rows["b"]["w"],
        *torch.zeros(3, WIDTH, dtype=torch.float64),
    ]
    torch.testing.assert_close(value, torch.stack(expected), rtol=0, atol=1e-6)
    written = json.loads((folder / "out" / "tokenizer.json").read_text())["added_tokens"]
    assert [(entry["content"], entry["id"]) for entry in written] == [("<s>", 2), ("<new>", 4), ("<zero>", 5)]


def test_rows_without_a_token_are_the_sources(tmp_path: Path) -> None:
    """The base's embeddings have two rows more than its tokenizer has tokens, and a token after them."""
    write(tmp_path, "base", BASE, rows=6)
    path = tmp_path / "base" / "tokenizer.json"
    values = tokenizer(BASE)
    values["added_tokens"].append({"id": 5, "content": "<end>", "special": True})
    path.write_text(json.dumps(values))
    write(tmp_path, "a", A)
    write(tmp_path, "b", BASE)
    found = merged(tmp_path, tokenizer="base")
    base = load_file(tmp_path / "base" / "model.safetensors")
    assert torch.equal(found["lm_head.weight"][3:], base["lm_head.weight"][3:])


def test_equal_tokenizers_need_nothing(tmp_path: Path) -> None:
    base = write(tmp_path, "base", BASE)
    for number, task in enumerate("ab"):
        write(tmp_path, task, BASE)
        (tmp_path / task / "model.safetensors").unlink()
        save_file(fine_tuned(base, number), tmp_path / task / "model.safetensors")
    aligned = merged(tmp_path, tokenizer="union")
    plain = merged(tmp_path)
    assert all(torch.equal(value, plain[name]) for name, value in aligned.items())
    assert (tmp_path / "out" / "vocab.txt").is_file()


@pytest.mark.parametrize(
    "given, message",
    [
        ("c", "plan.tokenizer.source: no input 'c'; allowed: union, base, a, b"),
        ({"tokens": {"<q>": {"source": "a"}}}, "tokenizer.tokens.<q>: no token of a '<q>'"),
        ({"tokens": {"<q>": {"source": {"model": "a", "token_id": 99}}}}, "token_id is 99; allowed: below 4"),
        ({"tokens": {"<q>": {"source": "c"}}}, "plan.tokenizer.tokens.<q>: no input 'c'"),
        ({"tokens": {"<q>": {}}}, "plan.tokenizer.tokens.<q>.source is missing"),
        ({"pad_to_multiple_of": 0}, "pad_to_multiple_of"),
    ],
)
def test_bad_choices_are_one_line(folder: Path, given: Any, message: str) -> None:
    with pytest.raises(PolytaskError) as caught:
        merged(folder, tokenizer=given)
    assert message in str(caught.value)


def test_models_that_cannot_be_aligned_say_why(folder: Path) -> None:
    other = tokenizer(A)
    other["model"]["type"] = "BPE"
    (folder / "a" / "tokenizer.json").write_text(json.dumps(other))
    with pytest.raises(PolytaskError, match="a has the token 'z', which its BPE model makes"):
        merged(folder, tokenizer="union")
    (folder / "a" / "tokenizer.json").write_text(json.dumps(tokenizer([*A, "v"])))
    with pytest.raises(PolytaskError, match="'v' is token 4 in a, which has 4 rows"):
        merged(folder, tokenizer="union")
    (folder / "a" / "tokenizer.json").unlink()
    (folder / "a" / "vocab.txt").unlink()
    with pytest.raises(PolytaskError, match="tokenizer: a has none"):
        merged(folder, tokenizer="union")


def test_a_union_reads_text_as_its_inputs_do(tmp_path: Path) -> None:
    """Byte pairs: the other's merges come after the base's, and its added tokens are found whole."""
    tokenizers = pytest.importorskip("tokenizers")
    letters = {letter: number for number, letter in enumerate("abcde")}

    def write_bpe(name: str, merges: list[tuple[str, str]], added: list[str]) -> None:
        vocabulary = dict(letters)
        for left, right in merges:
            vocabulary[left + right] = len(vocabulary)
        built = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=merges))
        built.add_special_tokens(added)
        rows = built.get_vocab_size()
        write(tmp_path, name, ["?"] * rows, rows=rows)
        built.save(str(tmp_path / name / "tokenizer.json"))

    write_bpe("base", [("a", "b")], ["<s>"])
    write_bpe("a", [("c", "d"), ("a", "b"), ("cd", "e")], ["<s>", "<go>"])
    write_bpe("b", [("a", "b")], ["<s>", "<stop>"])
    merged(tmp_path, tokenizer="union")
    found = tokenizers.Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    assert found.encode("abcde<go>c<stop>").tokens == ["ab", "cde", "<go>", "c", "<stop>"]
    base = tokenizers.Tokenizer.from_file(str(tmp_path / "base" / "tokenizer.json"))
    assert {token: found.token_to_id(token) for token in base.get_vocab()} == base.get_vocab()
    assert sorted(found.get_vocab().values()) == list(range(found.get_vocab_size()))
