"""Arrays in a folder, SPLIT/COLUMN/ROW.npy: one file a row and column, as dense data sets are often kept."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl

from polytask.core.errors import DataError
from polytask.tasks.data_spec import SPLITS

NAMES = {"train": "train", "val": "valid", "valid": "valid", "test": "test"}


@dataclass
class FolderRows:
    """Rows that are read when they are asked for.

    Attributes:
        files: column -> the file of each row.
        where, schema, assignment, bytes: see `polytask.tasks.sources.raw.RawRows`.
    """

    files: dict[str, list[Path]] = field(repr=False)
    where: str
    schema: dict[str, pl.DataType]
    assignment: np.ndarray | None
    bytes: int

    def __len__(self) -> int:
        return len(next(iter(self.files.values())))

    def read(self, columns: list[str]) -> pl.DataFrame:
        return self.slice(0, len(self), columns)

    def slice(self, start: int, rows: int, columns: list[str]) -> pl.DataFrame:
        return pl.DataFrame({column: self._stacked(column, start, rows) for column in columns})

    def blocks(self, rows: int, columns: list[str]) -> Iterator[tuple[int, pl.DataFrame]]:
        for start in range(0, len(self), rows):
            yield start, self.slice(start, rows, columns)

    def _stacked(self, column: str, start: int, rows: int) -> pl.Series:
        chosen = self.files[column][start : start + rows]
        arrays = [_loaded(file) for file in chosen]
        for file, array in zip(chosen, arrays, strict=True):
            if array.shape != arrays[0].shape:
                raise DataError(f"{file}: an array {array.shape}; {chosen[0].name} of this column is {arrays[0].shape}")
        return pl.Series(column, np.stack(arrays)) if arrays else pl.Series(column, [], dtype=self.schema[column])


def rows_from_folder(folder: Path) -> FolderRows:
    """Raises: DataError where a split is missing, or a row lacks a column."""
    splits = {NAMES[place.name]: place for place in sorted(folder.iterdir()) if place.is_dir() and place.name in NAMES}
    if "train" not in splits or "valid" not in splits:
        found = ", ".join(place.name for place in sorted(folder.iterdir())) or "nothing"
        raise DataError(f"{folder}: found {found}; allowed: the folders train and val (or valid), and test")
    columns = sorted(place.name for place in splits["train"].iterdir() if place.is_dir())
    if not columns:
        raise DataError(f"{splits['train']}: no folder of a column; allowed: COLUMN/ROW.npy")
    files: dict[str, list[Path]] = {column: [] for column in columns}
    assignment: list[int] = []
    for split in [split for split in SPLITS if split in splits]:
        names = _names(splits[split] / columns[0])
        for column in columns:
            own = _names(splits[split] / column)
            if own != names:
                alone = next(name for name in [*own, *names] if (name in own) != (name in names))
                raise DataError(f"{splits[split]}: {alone} is in one of the columns {columns[0]} and {column} only")
            files[column] += [splits[split] / column / name for name in names]
        assignment += [SPLITS.index(split)] * len(names)
    schema = {column: pl.Series(_loaded(files[column][0])[None]).dtype for column in columns}
    size = sum(file.stat().st_size for column in columns for file in files[column])
    return FolderRows(files, str(folder), schema, np.array(assignment, dtype=np.int8), size)


def _names(folder: Path) -> list[str]:
    """Files in the order of their numbers: 2.npy before 10.npy."""
    names = [file.name for file in folder.glob("*.npy")] if folder.is_dir() else []
    if not names:
        raise DataError(f"{folder}: no .npy file there; allowed: one a row")
    return sorted(names, key=lambda name: (len(name), name))


def _loaded(file: Path) -> np.ndarray:
    try:
        array = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{file}: no whole .npy file of a plain array ({error})") from error
    return array.astype(np.float32) if array.dtype in (np.float16, np.float64) else array
