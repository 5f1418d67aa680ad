"""Molecules as Morgan fingerprints.

Source: Rogers and Hahn 2010 (extended-connectivity fingerprints), computed by RDKit's generator (extra `chem`).
"""

from typing import Any

import numpy as np
import polars as pl

from polytask.tasks.features.feature import Place
from polytask.tasks.features.molecules import readable, readings
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
        return readable(frame[self.column], _PURPOSE)

    def write(self, frame: pl.DataFrame, place: Place, into: np.ndarray) -> None:
        generator: Any = None
        for position, molecule in enumerate(readings(frame[self.column], place, self.kind, _PURPOSE)):
            generator = generator or self._generator()
            if self.options.counts:
                into[position] = np.log1p(generator.GetCountFingerprintAsNumPy(molecule).astype(np.float32))
            else:
                into[position] = generator.GetFingerprintAsNumPy(molecule)

    def _generator(self) -> Any:
        from rdkit.Chem.rdFingerprintGenerator import GetMorganGenerator

        return GetMorganGenerator(
            radius=self.options.radius, fpSize=self.options.bits, includeChirality=self.options.chirality
        )

    def to_json(self) -> dict[str, Any]:
        return {"column": self.column, **self.options.model_dump()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Morgan":
        return cls(values["column"], MorganOptions(**{key: values[key] for key in MorganOptions.model_fields}))
