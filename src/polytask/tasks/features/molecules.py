"""Molecules in SMILES notation, through RDKit: parsing and Bemis-Murcko scaffolds."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import polars as pl

from polytask.core.errors import DataError, MissingExtra


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


def unreadable(column: str, smiles: str | None, row: str) -> DataError:
    return DataError(
        f"{row}: column {column!r} is {smiles!r}, which is no molecule in SMILES notation; "
        f"features: {{{column}: {{kind: morgan, invalid: drop}}}} leaves such training rows out"
    )


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
