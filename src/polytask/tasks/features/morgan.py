"""Molecules as Morgan fingerprints.

Source: Rogers and Hahn 2010 (extended-connectivity fingerprints), computed by RDKit's generator (extra `chem`).
"""

from typing import Any

import numpy as np
import polars as pl

from polytask.tasks.features.feature import Place
from polytask.tasks.features.molecules import parse, rdkit, unreadable
from polytask.tasks.features.options import MorganOptions

_PURPOSE = "a fingerprint of molecules (kind: morgan)"


class Morgan:
    """Part of the input `bits`. Nothing is fitted: a fingerprint depends on its molecule and the options alone."""

    kind, key = "morgan", "bits"

    def __init__(self, column: str, options: MorganOptions) -> None:
        self.column, self.options = column, options
        self.columns: tuple[str, ...] = (column,)

    @property
    def width(self) -> int:
        return self.options.bits

    def observe(self, frame: pl.DataFrame, place: Place) -> None:
        pass

    def finish(self, place: Place) -> None:
        pass

    def valid(self, frame: pl.DataFrame) -> np.ndarray:
        """bool [N]: the molecule can be read."""
        with rdkit(_PURPOSE) as chem:
            return np.array([parse(chem, text) is not None for text in _texts(frame[self.column])], dtype=bool)

    def write(self, frame: pl.DataFrame, place: Place, into: np.ndarray) -> None:
        with rdkit(_PURPOSE) as chem:
            from rdkit.Chem.rdFingerprintGenerator import GetMorganGenerator

            generator = GetMorganGenerator(
                radius=self.options.radius, fpSize=self.options.bits, includeChirality=self.options.chirality
            )
            for position, text in enumerate(_texts(frame[self.column])):
                molecule = parse(chem, text)
                if molecule is None:
                    raise unreadable(self.column, text, place.row(position))
                if self.options.counts:
                    into[position] = np.log1p(generator.GetCountFingerprintAsNumPy(molecule).astype(np.float32))
                else:
                    into[position] = generator.GetFingerprintAsNumPy(molecule)

    def to_json(self) -> dict[str, Any]:
        return {"column": self.column, **self.options.model_dump()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Morgan":
        return cls(values["column"], MorganOptions(**{key: values[key] for key in MorganOptions.model_fields}))


def _texts(series: pl.Series) -> list[str | None]:
    return series.cast(pl.String).to_list()
