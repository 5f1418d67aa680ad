"""Texts as token ids. The tokenizer is one file, tokenizer.json, which travels with the checkpoint."""

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from polytask.core.errors import CheckpointError, DataError, MissingExtra
from polytask.tasks.examples import Ragged
from polytask.tasks.features.feature import Place
from polytask.tasks.features.options import TextOptions

TOKENIZER_FILE = "tokenizer.json"
_PADDING_TOKENS = ("[PAD]", "<pad>", "<|pad|>", "<|endoftext|>")


class Text:
    """The inputs `input_ids` and `attention_mask`. A missing text counts as an empty one."""

    kind, key = "text", "input_ids"

    def __init__(self, column: str, options: TextOptions, tokenizer: str, fill: int) -> None:
        """tokenizer: the content of a tokenizer.json; fill: the id that pads."""
        self.column, self.options, self.tokenizer, self.fill = column, options, tokenizer, fill
        self.columns: tuple[str, ...] = (column,) if options.pair is None else (column, options.pair)
        self._long = self._rows = 0

    @classmethod
    def with_tokenizer(cls, column: str, options: TextOptions, source: str) -> "Text":
        """source: a Hugging Face directory, or the id of a model in the local cache."""
        content = read_tokenizer(source)
        return cls(column, options, content, padding_id(content))

    @property
    def remarks(self) -> list[str]:
        if not self._long:
            return []
        cut = f"{self._long} of {self._rows} texts are longer than {self.options.max_length} tokens and were cut"
        return [f"column {self.column!r}: {cut} (option `max_length`)"]

    def observe(self, frame: pl.DataFrame, place: Place) -> None:
        pass

    def finish(self, place: Place) -> None:
        pass

    def encode(self, frame: pl.DataFrame, place: Place) -> dict[str, Ragged]:
        columns = [frame[column] for column in self.columns]
        for series in columns:
            if series.dtype not in (pl.String, pl.Null, pl.Categorical, pl.Enum):
                raise DataError(f"{place.where}: column {series.name!r} has type {series.dtype}; kind text takes text")
        texts = [series.cast(pl.String).fill_null("").to_list() for series in columns]
        encodings = self._engine.encode_batch_fast(texts[0] if len(texts) == 1 else list(zip(*texts, strict=True)))
        self._rows += len(encodings)
        self._long += sum(bool(encoding.overflowing) for encoding in encodings)
        lengths = np.fromiter((len(encoding) for encoding in encodings), dtype=np.int64, count=len(encodings))
        offsets = torch.from_numpy(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))
        ids = [np.array(encoding.ids, dtype=np.int64) for encoding in encodings]
        values = torch.from_numpy(np.concatenate(ids) if ids else np.zeros(0, dtype=np.int64))
        return {
            "input_ids": Ragged(values, offsets, self.fill),
            "attention_mask": Ragged(torch.ones_like(values), offsets, 0),
        }

    def files(self) -> dict[str, bytes]:
        return {TOKENIZER_FILE: self.tokenizer.encode()}

    def to_json(self) -> dict[str, Any]:
        return {"column": self.column, **self.options.model_dump(), "fill": self.fill}

    @classmethod
    def from_json(cls, values: dict[str, Any], files: Mapping[str, bytes]) -> "Text":
        if TOKENIZER_FILE not in files:
            raise CheckpointError(f"no {TOKENIZER_FILE} beside inputs.json; column {values['column']!r} needs it")
        options = TextOptions(**{key: values[key] for key in TextOptions.model_fields})
        return cls(values["column"], options, files[TOKENIZER_FILE].decode(), values["fill"])

    @cached_property
    def _engine(self) -> Any:
        engine = _tokenizers().Tokenizer.from_str(self.tokenizer)
        engine.no_padding()
        engine.enable_truncation(self.options.max_length)
        return engine


def read_tokenizer(source: str) -> str:
    """The content of tokenizer.json of a directory or a cached hub id; older formats are converted by transformers."""
    file = Path(source) / TOKENIZER_FILE
    if file.is_file():
        return file.read_text(encoding="utf-8")
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise MissingExtra("transformers", "text", "reading text") from error
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, use_fast=True, local_files_only=True)
    except (OSError, ValueError) as error:
        first_line = str(error).strip().splitlines()[0]
        raise DataError(
            f"{source!r}: no tokenizer there; allowed: a directory with {TOKENIZER_FILE} ({first_line})"
        ) from error
    if tokenizer is None or not tokenizer.is_fast:
        raise DataError(f"the tokenizer in {source!r} has no fast version; allowed: a directory with {TOKENIZER_FILE}")
    return tokenizer.backend_tokenizer.to_str()


def padding_id(content: str) -> int:
    """The id with which rows are padded (masked out of attention): the declared one, a usual padding token, else 0."""
    declared = (json.loads(content).get("padding") or {}).get("pad_id")
    if declared is not None:
        return int(declared)
    engine = _tokenizers().Tokenizer.from_str(content)
    ids = (engine.token_to_id(token) for token in _PADDING_TOKENS)
    return next((number for number in ids if number is not None), 0)


def _tokenizers() -> Any:
    try:
        import tokenizers
    except ImportError as error:
        raise MissingExtra("tokenizers", "text", "reading text") from error
    return tokenizers
