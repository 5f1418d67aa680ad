"""The files of the output's tokenizer: one input's, with the tokens of others that the plan adds."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from polytask.checkpoints.directory import json_bytes
from polytask.core.errors import CheckpointError, Inconsistent, MissingInput
from polytask.merging.alignment import Alignment
from polytask.merging.inputs import Inputs

FILE = "tokenizer.json"
OLDER = ("vocab.json", "vocab.txt", "merges.txt", "added_tokens.json", "tokenizer.model", "spiece.model")
OTHERS = ("tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja", "chat_template.json")


def tokenizer_files(inputs: Inputs, alignment: Alignment) -> dict[str, bytes | Path]:
    """name -> content, or the file to copy. Older formats, which hold no tokens of others, are left out beside them."""
    folder = inputs.named[alignment.source].path
    names = (FILE, *OTHERS) if alignment.added else (FILE, *OTHERS, *OLDER)
    files: dict[str, bytes | Path] = {name: folder / name for name in names if (folder / name).is_file()}
    if not alignment.added:
        return files
    if FILE not in files:
        raise MissingInput(f"tokenizer: tokens are added to {alignment.source}, which has no {FILE} ({folder})")
    others = {name: _read(model.path / FILE) for name, model in inputs.named.items() if (model.path / FILE).is_file()}
    united = _united(others.pop(alignment.source), others, alignment.added)
    return {**files, FILE: json_bytes(united)}


def _united(own: dict[str, Any], others: Mapping[str, Any], added: Mapping[str, int]) -> dict[str, Any]:
    """The tokenizer with more tokens: what another one adds to its vocabulary is added likewise, its other tokens and
    merges go after all that was there."""
    entries, made = _owners(others)
    model = dict(own["model"])
    listed = [dict(entry) for entry in own.get("added_tokens", [])]
    more: dict[str, int] = {}
    for token, number in added.items():
        if token in entries or token not in made:
            listed.append({**entries.get(token, {**_SPECIAL, "content": token}), "id": number})
            continue
        _check_model(token, made[token], others[made[token]]["model"], model)
        more[token] = number
    if isinstance(model["vocab"], dict):  # added tokens too: readers number those anew that the model does not know
        numbered = {**model["vocab"], **{entry["content"]: entry["id"] for entry in listed}, **more}
        model["vocab"] = dict(sorted(numbered.items(), key=lambda item: item[1]))
    if more and "merges" in model:
        model["merges"] = _merges(model, [other["model"] for other in others.values()])
    return {**own, "added_tokens": sorted(listed, key=lambda entry: entry["id"]), "model": model}


_SPECIAL = {**dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False), "special": True}
"""How a token is added that no input has."""


def _owners(others: Mapping[str, Any]) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Token -> its entry where it is an added one, and token -> the first input whose model makes it."""
    entries: dict[str, dict[str, Any]] = {}
    made: dict[str, str] = {}
    for name, other in others.items():
        for entry in other.get("added_tokens", []):
            entries.setdefault(entry["content"], entry)
        vocabulary = other["model"]["vocab"]
        for token in vocabulary if isinstance(vocabulary, dict) else (piece for piece, *_ in vocabulary):
            made.setdefault(token, name)
    return entries, made


def _check_model(token: str, owner: str, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    """Inconsistent where a token that is made of others has no place in our kind of model."""
    if theirs.get("type") != ours.get("type") or not isinstance(ours["vocab"], dict):
        raise Inconsistent(
            f"tokenizer: {owner} has the token {token!r}, which its {theirs.get('type')} model makes; it can only be "
            f"added to a model of that kind whose vocabulary is by name, and the output's is {ours.get('type')}"
        )


def _merges(model: Mapping[str, Any], others: Sequence[Mapping[str, Any]]) -> list[Any]:
    """Ours, then those of the others that make tokens which are there."""
    merges, known = list(model["merges"]), {_pair(merge) for merge in model["merges"]}
    in_pairs = not merges or isinstance(merges[0], list)
    for theirs in others:
        for left, right in map(_pair, theirs.get("merges", []) if theirs.get("type") == model.get("type") else []):
            if (left, right) not in known and all(part in model["vocab"] for part in (left, right, left + right)):
                known.add((left, right))
                merges.append([left, right] if in_pairs else f"{left} {right}")
    return merges


def _pair(merge: Any) -> tuple[str, str]:
    left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
    return left, right


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path}: not readable as a tokenizer ({error})") from None
