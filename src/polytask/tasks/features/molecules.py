"""Molecules in SMILES notation, through RDKit: parsing and Bemis-Murcko scaffolds."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import polars as pl

from polytask.core.errors import DataError, MissingExtra
from polytask.tasks.features.feature import Place


@contextmanager
def rdkit(purpose: str) -> Iterator[Any]:
    """RDKit's Chem module, without its lines on stderr (unreadable molecules become typed errors here)."""
    try:
        from rdkit import Chem, rdBase
    except ImportError as error:
        raise MissingExtra("rdkit", "chem", purpose) from error
    with rdBase.BlockLogs():
        yield Chem


def parse(chem: Any, smiles: str | None) -> Any:
    """The molecule, or None: a missing, empty or unreadable notation."""
    return chem.MolFromSmiles(smiles) if smiles else None


def readable(smiles: pl.Series, purpose: str) -> np.ndarray:
    """bool [N]: the molecule can be read."""
    with rdkit(purpose) as chem:
        return np.array([parse(chem, text) is not None for text in _texts(smiles)], dtype=bool)


def readings(smiles: pl.Series, place: Place, kind: str, purpose: str) -> Iterator[Any]:
    """The molecules, for a feature of this kind; DataError naming the row of the first that cannot be read."""
    with rdkit(purpose) as chem:
        for position, text in enumerate(_texts(smiles)):
            molecule = parse(chem, text)
            if molecule is None:
                mend = f"features: {{{smiles.name}: {{kind: {kind}, invalid: drop}}}} leaves such training rows out"
                raise DataError(
                    f"{place.row(position)}: column {smiles.name!r} is {text!r}, which is no molecule in SMILES "
                    f"notation; {mend}"
                )
            yield molecule


def _texts(series: pl.Series) -> list[str | None]:
    return series.cast(pl.String).to_list()


def scaffolds(smiles: pl.Series, where: str) -> np.ndarray:
    """int64 [N]: number of each molecule's scaffold, counted in the order of first appearance.

    Source: Bemis and Murcko 1996: rings and the chains between them; molecules without rings share the empty scaffold.
    A molecule that cannot be read is alone with its text (whether it may stay is the morgan feature's decision).
    """
    numbers: dict[str, int] = {}
    codes = np.empty(len(smiles), dtype=np.int64)
    with rdkit("a split by scaffold") as chem:
        from rdkit.Chem.Scaffolds import MurckoScaffold

        for position, text in enumerate(smiles):
            molecule = parse(chem, text)
            if molecule is None:
                name = f"unreadable {text}"
            else:
                name = MurckoScaffold.MurckoScaffoldSmiles(mol=molecule, includeChirality=False)
            codes[position] = numbers.setdefault(name, len(numbers))
    if not len(codes):
        raise DataError(f"{where}: no molecule to split")
    return codes
