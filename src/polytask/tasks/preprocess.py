"""From raw rows to a model's inputs: fitted on the training split only, stored in inputs.json, exact when read back."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from polytask.core.errors import DataError, UnknownName
from polytask.core.inputs import GRAPH_INPUTS, InputSchema
from polytask.tasks.examples import Ragged
from polytask.tasks.features.feature import Feature, Place
from polytask.tasks.features.kinds import FEATURES

PACKED = ("input_ids", "nodes")  # keys of features that give several inputs, with rows of different length


class Preprocessor:
    """A source's features, in the order of its columns.

    Features that share an input are put side by side: all numeric columns in `numeric`, all indices in `categorical`,
    all fingerprints and multi-hot lists in `bits`, all lists in order in `sequence`. Images, arrays, texts and graphs
    are inputs of their own.
    """

    def __init__(self, features: Iterable[Feature], source: str = "data") -> None:
        self.features = list(features)
        self.source = source
        if not self.features:
            raise DataError(
                f"source {source!r}: no column is left as a feature (labels, masks, split and dropped columns are none)"
            )
        reserved = ("numeric", "categorical", "sequence", "bits", "image", "input_ids", "attention_mask", "hidden")
        for feature in self.features:
            if feature.kind == "array" and feature.key in (*reserved, *GRAPH_INPUTS):
                raise DataError(f"source {source!r}: an array column cannot be called {feature.key!r}, an input's name")
        for key in ("image", *PACKED):
            several = [feature.columns[0] for feature in self._with_key(key)]
            if len(several) > 1:
                raise DataError(
                    f"source {source!r}: columns {', '.join(several)} would all be the input {key!r}; drop all but one"
                )

        longest = {feature.columns[0]: feature.options.max_length for feature in self._with_key("sequence")}
        if len(dict.fromkeys(longest.values())) > 1:
            raise DataError(
                f"source {source!r}: max_length of the sequences is {longest}; allowed: one for all of them"
            )

    def fit(self, chunks: Iterable[tuple[pl.DataFrame, Place]]) -> "Preprocessor":
        """Fits the features on the training rows, given once, in one or more chunks."""
        place = Place(self.source)
        for frame, place in chunks:
            for feature in self.features:
                feature.observe(frame, place)
        for feature in self.features:
            feature.finish(Place(place.where))
        return self

    @property
    def columns(self) -> list[str]:
        """The raw columns that `transform` needs."""
        return [column for feature in self.features for column in feature.columns]

    @property
    def schema(self) -> InputSchema:
        shapes: dict[str, tuple[int, ...]] = {}
        for key in ("numeric", "bits"):
            if self._with_key(key):
                shapes[key] = (sum(feature.width for feature in self._with_key(key)),)
        shapes |= {feature.key: tuple(feature.shape) for feature in self._with_shape()}
        categorical, sequences = self._with_key("categorical"), self._with_key("sequence")
        return InputSchema(
            shapes=shapes,
            cardinalities=tuple(feature.cardinality for feature in categorical),
            sequences=tuple(feature.cardinality for feature in sequences),
            longest=max((feature.options.max_length for feature in sequences), default=0),
            text=bool(self._with_key("input_ids")),
            graph=next((feature.graph for feature in self._with_key("nodes")), None),
            markers=self._markers(),
            names=tuple(feature.columns[0] for feature in categorical),
        )

    def _markers(self) -> tuple[int, ...]:
        """Of the numbers side by side in `numeric`; the one that marks a feature's as missing is its last."""
        found: list[int] = []
        for feature in self._with_key("numeric"):
            last = len(found) + feature.width - 1
            found += [last if getattr(feature, "indicator", False) else -1] * feature.width
        return tuple(found) if max(found, default=-1) >= 0 else ()

    def transform(self, frame: pl.DataFrame, place: Place | None = None) -> dict[str, Tensor | Ragged]:
        """The inputs of these rows, in the order of the rows.

        Raises: UnknownName for a column that is not there, DataError for a value that cannot be used, naming its row.
        """
        place = place or Place("new rows")
        for column in self.columns:
            if column not in frame.columns:
                raise UnknownName("column", column, frame.columns, where=f"{place.where} (the model needs it)")
        inputs: dict[str, Tensor | Ragged] = {}
        for key in ("numeric", "bits"):
            if self._with_key(key):
                inputs[key] = self._side_by_side(key, frame, place)
        if categorical := self._with_key("categorical"):
            indices = np.empty((len(frame), len(categorical)), dtype=np.int64)
            for number, feature in enumerate(categorical):
                indices[:, number] = feature.encode(frame, place)
            inputs["categorical"] = torch.from_numpy(indices)
        if self._with_key("sequence"):
            inputs["sequence"] = self._aligned(frame, place)
        for feature in self._with_shape():
            inputs[feature.key] = torch.from_numpy(np.ascontiguousarray(feature.encode(frame, place)))
        for feature in (each for key in PACKED for each in self._with_key(key)):
            inputs |= feature.encode(frame, place)
        return inputs

    @property
    def droppable(self) -> list[str]:
        """Columns whose unreadable rows are to be dropped from training data (`invalid: drop`)."""
        return [column for feature in self._dropping() for column in feature.columns]

    def valid(self, frame: pl.DataFrame) -> np.ndarray:
        """bool [N]: False for rows that a feature with `invalid: drop` cannot read; needs the `droppable` columns."""
        kept = np.ones(len(frame), dtype=bool)
        for feature in self._dropping():
            kept &= feature.valid(frame)
        return kept

    def remarks(self, where: str) -> list[str]:
        """What the features did that a reader of the run should know."""
        return [f"{where}: {remark}" for feature in self.features for remark in getattr(feature, "remarks", [])]

    def extra_files(self) -> dict[str, bytes]:
        """Files that stand beside inputs.json (the tokenizer's)."""
        return {name: content for feature in self._with_key("input_ids") for name, content in feature.files().items()}

    def to_json(self) -> dict[str, Any]:
        return {
            "source": self.source,
            "features": [{"kind": feature.kind, **feature.to_json()} for feature in self.features],
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any], files: Mapping[str, bytes] | None = None) -> "Preprocessor":
        """files: what `extra_files` gave."""
        features = []
        for stored in values["features"]:
            kind = FEATURES[stored["kind"]]
            features.append(kind.from_json(stored) if stored["kind"] != "text" else kind.from_json(stored, files or {}))
        return cls(features, values["source"])

    def _dropping(self) -> list[Any]:
        return [feature for feature in self.features if getattr(feature.options, "invalid", "error") == "drop"]

    def _with_shape(self) -> list[Any]:
        return [feature for feature in self.features if hasattr(feature, "shape")]

    def _with_key(self, key: str) -> list[Any]:
        return [feature for feature in self.features if feature.key == key]

    def _aligned(self, frame: pl.DataFrame, place: Place) -> Ragged:
        """All sequences of a row, [elements, columns]; they speak of the same elements, so have one length."""
        first, *others = self._with_key("sequence")
        values, lengths = first.encode(frame, place)
        columns = [values]
        for other in others:
            values, counts = other.encode(frame, place)
            if (counts != lengths).any():
                position = int((counts != lengths).argmax())
                found = f"{lengths[position]} and {counts[position]} elements"
                names = f"{first.columns[0]!r} and {other.columns[0]!r}"
                raise DataError(
                    f"{place.row(position)}: columns {names} have {found}; allowed: sequences of one length"
                )
            columns.append(values)
        offsets = torch.from_numpy(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))
        return Ragged(torch.from_numpy(np.stack(columns, axis=1)), offsets)

    def _side_by_side(self, key: str, frame: pl.DataFrame, place: Place) -> Tensor:
        features = self._with_key(key)
        values = np.empty((len(frame), sum(feature.width for feature in features)), dtype=np.float32)
        start = 0
        for feature in features:
            feature.write(frame, place, values[:, start : start + feature.width])
            start += feature.width
        return torch.from_numpy(values)
