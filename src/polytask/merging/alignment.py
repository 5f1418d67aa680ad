"""Models of different tokenizers: each input's rows by token, in the order of the output's vocabulary.

As mergekit documents it: a model keeps its own embedding of a token that it has. One that lacks it gets the base's;
else that of the only model that has it; else the mean of those of all that have it. Then the rule merges as always.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from polytask.core.errors import BadValue, Inconsistent, MissingInput, UnknownName
from polytask.merging.inputs import Candidate, Inputs
from polytask.merging.jobs import Source
from polytask.merging.layers import place_of
from polytask.merging.plan import MergePlan, TokenizerChoice, TokenOf
from polytask.merging.tokenizers import tokenizer_file, vocabulary
from polytask.merging.weights.gathered import GatheredWeights

_OTHER_ROWS = ("position", "token_type")  # parts of the names of embeddings that are not of tokens


@dataclass(frozen=True)
class Alignment:
    """Where each row of the output's vocabulary comes from.

    Attributes:
        source: the input whose tokenizer is the output's, or is what others' tokens are added to.
        tokens: token -> number in the output.
        added: those that the source's tokenizer lacks.
        tables: input -> int64 [rows, inputs]: whose rows are averaged for its row, -1 where one has no part in it.
        sizes: input -> rows of its embeddings.
        owners: the inputs, in the order of the tables' columns.
    """

    source: str
    tokens: dict[str, int]
    added: dict[str, int]
    tables: dict[str, Tensor]
    sizes: dict[str, int]
    owners: tuple[str, ...]

    @property
    def rows(self) -> int:
        return len(self.tables[self.source])

    def of(self, candidate: Candidate) -> tuple[Candidate, str]:
        """The candidate with rows by token, and a line that says so; as it is where its rows are not of tokens."""
        every = dict(candidate.every)
        if place_of(candidate.name) is not None or any(part in candidate.name for part in _OTHER_ROWS):
            return candidate, ""
        if any(source.weights.shape(source.name)[:1] != (self.sizes[owner],) for owner, source in every.items()):
            return candidate, ""
        columns = [column for column, owner in enumerate(self.owners) if owner in every]
        parts = [every[self.owners[column]] for column in columns]
        found = {
            owner: Source(
                GatheredWeights(
                    [(part.weights, part.name) for part in parts],
                    [self.owners[column] for column in columns].index(owner),
                    self.tables[owner][:, columns],
                ),
                source.name,
            )
            for owner, source in every.items()
        }
        base = found.get("base") if candidate.base is not None else None
        sources = {task: found[task] for task in candidate.sources}
        return replace(candidate, base=base, sources=sources), f"tokenizer: {self.rows} rows by token"


def align(plan: MergePlan, inputs: Inputs) -> Alignment | None:
    """The alignment that the plan asks for; None where it asks for none, or every tokenizer is the same already.

    Raises:
        MissingInput: an input without a tokenizer; UnknownName: a token or an input that there is not; Inconsistent:
        tokens without an embedding.
    """
    chosen = plan.tokenizer
    if chosen is None:
        return None
    vocabularies = {name: _vocabulary(name, inputs) for name in inputs.named}
    source = next(iter(vocabularies)) if chosen.source in ("union", "base") else chosen.source
    alike = all(tokens == vocabularies[source] for tokens in vocabularies.values())
    if alike and not chosen.tokens and chosen.pad_to_multiple_of is None:
        return None
    tokens = dict(vocabularies[source])
    others = vocabularies.values() if chosen.source == "union" else ()
    listed = [token for known in others for token in sorted(known, key=known.__getitem__)]
    for token in (*listed, *chosen.tokens):
        tokens.setdefault(token, max(tokens.values(), default=-1) + 1)
    sizes = {name: _size(name, inputs) for name in vocabularies}
    for name, known in vocabularies.items():
        if known and max(known.values()) >= sizes[name]:
            token = max(known, key=known.__getitem__)
            raise Inconsistent(f"tokenizer: {token!r} is token {known[token]} in {name}, which has {sizes[name]} rows")
    added = {token: number for token, number in tokens.items() if token not in vocabularies[source]}
    tables = _tables(chosen, tokens, vocabularies, sizes, source)
    return Alignment(source, tokens, added, tables, sizes, tuple(vocabularies))


def _tables(
    chosen: TokenizerChoice,
    tokens: Mapping[str, int],
    vocabularies: Mapping[str, Mapping[str, int]],
    sizes: Mapping[str, int],
    source: str,
) -> dict[str, Tensor]:
    owners = list(vocabularies)
    multiple = chosen.pad_to_multiple_of or 1
    rows = -(-(max(tokens.values()) + 1) // multiple) * multiple
    own = torch.full((rows, len(owners)), -1)
    for column, known in enumerate(vocabularies.values()):
        pairs = [(tokens[token], number) for token, number in known.items() if token in tokens]
        places, numbers = torch.tensor(pairs).reshape(-1, 2).T
        own[places, column] = numbers
    unnamed = torch.ones(rows, dtype=torch.bool)
    unnamed[torch.tensor(list(tokens.values()))] = False
    unnamed[sizes[source] :] = False  # rows that pad the vocabulary and are no model's are 0
    own[unnamed, owners.index(source)] = unnamed.nonzero().flatten()
    fallback = _only_first(own) if "base" in owners else own.clone()
    forced = []
    for token, choice in chosen.tokens.items():
        fallback[tokens[token]] = -1
        if choice.source is not None:
            owner, number = _token_of(token, choice.source, vocabularies, sizes)
            fallback[tokens[token], owners.index(owner)] = number
        forced += [tokens[token]] if choice.force else []
    tables = {}
    for column, owner in enumerate(owners):
        has = own[:, column] >= 0
        has[forced] = False
        tables[owner] = fallback.clone()
        tables[owner][has] = -1
        tables[owner][has, column] = own[has, column]
    return tables


def _only_first(own: Tensor) -> Tensor:
    """Where the base, the first column, has the token, its row alone."""
    found = own.clone()
    found[own[:, 0] >= 0, 1:] = -1
    return found


def _token_of(
    token: str, source: str | TokenOf, vocabularies: Mapping[str, Mapping[str, int]], sizes: Mapping[str, int]
) -> tuple[str, int]:
    """The input and the row that a token's embedding is said to be."""
    where = f"tokenizer.tokens.{token}"
    owner = source if isinstance(source, str) else source.model
    if isinstance(source, TokenOf) and source.token_id is not None:
        if source.token_id >= sizes[owner]:
            raise BadValue("token_id", source.token_id, f"below {sizes[owner]}, the rows of {owner}", where)
        return owner, source.token_id
    wanted = token if isinstance(source, str) or source.token is None else source.token
    if wanted not in vocabularies[owner]:
        raise UnknownName(f"token of {owner}", wanted, vocabularies[owner], where)
    return owner, vocabularies[owner][wanted]


def _vocabulary(name: str, inputs: Inputs) -> dict[str, int]:
    model = inputs.named[name]
    if model.kind == "polytask":
        raise BadValue("tokenizer", name, "models of the Hugging Face format; this one was trained by polytask", "plan")
    path = tokenizer_file(model.path)
    if path is None:
        raise MissingInput(f"tokenizer: {name} has none ({model.path})")
    return vocabulary(path)


def _size(name: str, inputs: Inputs) -> int:
    """How many rows an input's embeddings have."""
    model = inputs.named[name]
    found = [
        model.weights.shape(tensor)[0]
        for tensor in model.weights.names()
        if "embed" in tensor and len(model.weights.shape(tensor)) == 2 and not any(o in tensor for o in _OTHER_ROWS)
    ]
    stated: Any = model.config.get("vocab_size") or (model.config.get("text_config") or {}).get("vocab_size")
    if stated in found or not found:
        if not isinstance(stated, int):
            raise MissingInput(f"tokenizer: {name} ({model.path}): no vocab_size in its config, and no embeddings")
        return stated
    return found[0]
