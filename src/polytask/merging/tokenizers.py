"""Whether models number their tokens alike: merged embeddings of different tokens would mean nothing."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from polytask.core.errors import CheckpointError, Inconsistent
from polytask.merging.inputs import Inputs
from polytask.merging.plan import MergePlan

FILES = ("tokenizer.json", "vocab.json", "vocab.txt")


def check_tokenizers(plan: MergePlan, inputs: Inputs) -> None:
    """Inconsistent where two inputs give a token different numbers, or where one has tokens that the other lacks and
    the plan does not say what to do (`vocabulary`; `tokenizer` aligns them)."""
    if plan.tokenizer is not None:
        return
    found = [(name, path) for name, model in inputs.named.items() if (path := tokenizer_file(model.path)) is not None]
    if not found:
        return
    (first, ours), *others = found
    for name, theirs in others:
        if ours.name == theirs.name and ours.read_bytes() != theirs.read_bytes():
            _compare(first, vocabulary(ours), name, vocabulary(theirs), plan.vocabulary)


def require_same_tokens(paths: Mapping[str, Path]) -> None:
    """Inconsistent where two directories' tokenizers differ in a token; one that has none is not looked at."""
    found = [(name, vocabulary(file)) for name, path in paths.items() if (file := tokenizer_file(path)) is not None]
    for name, theirs in found[1:]:
        first, ours = found[0]
        _compare(first, ours, name, theirs, "error", "their logits are of different tokens")


def _compare(
    first: str,
    ours: dict[str, int],
    name: str,
    theirs: dict[str, int],
    treatment: str,
    remedy: str = "say what to do, vocabulary: base or largest",
) -> None:
    for token, number in ours.items():
        if theirs.get(token, number) != number:
            raise Inconsistent(
                f"tokenizers: {token!r} is token {number} in {first} and {theirs[token]} in {name}; "
                "only models that number their tokens alike go together"
            )
    extra = [token for token in theirs if token not in ours] + [token for token in ours if token not in theirs]
    if extra and treatment == "error":
        owner = name if extra[0] in theirs else first
        raise Inconsistent(
            f"tokenizers: {owner} has the token {extra[0]!r}, which {first if owner == name else name} lacks "
            f"({len(extra)} differ); {remedy}"
        )


def vocabulary(path: Path) -> dict[str, int]:
    """Token -> number, of a tokenizer's file."""
    try:
        text = path.read_text(encoding="utf-8")
        if path.name == "vocab.txt":
            return {token: number for number, token in enumerate(text.splitlines())}
        values: Any = json.loads(text)
        if path.name == "vocab.json":
            return values
        tokens = values["model"]["vocab"]
        listed = tokens if isinstance(tokens, dict) else {entry[0]: number for number, entry in enumerate(tokens)}
        return {**listed, **{entry["content"]: entry["id"] for entry in values.get("added_tokens", [])}}
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise CheckpointError(f"{path}: not readable as a tokenizer ({error})") from None


def tokenizer_file(path: Path) -> Path | None:
    """The file of a model's directory that says how its tokens are numbered."""
    return next((path / name for name in FILES if (path / name).is_file()), None)
