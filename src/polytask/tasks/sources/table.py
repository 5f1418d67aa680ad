"""Tables on disk: parquet and CSV files, directories of them and globs, through polars."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl

from polytask.core.errors import DataError
from polytask.tasks.sources.csv_text import check_header, csv_fault, csv_separator

SUFFIXES = (".parquet", ".csv")
_MAGIC = b"PAR1"


@dataclass
class TableRows:
    """A table of one or more files with the same columns; rows are numbered through the files in order of their names.

    CSV columns are typed by the whole file, so that row 10 and row 10 million are read alike.
    """

    files: list[Path]
    where: str
    schema: dict[str, pl.DataType]
    counts: list[int]  # rows of each file
    assignment: np.ndarray | None = None
    bytes: int = 0
    frame: pl.LazyFrame = field(repr=False, default_factory=pl.LazyFrame)

    def __len__(self) -> int:
        return sum(self.counts)

    def read(self, columns: list[str]) -> pl.DataFrame:
        return self._collect(self.frame.select(columns))

    def slice(self, start: int, rows: int, columns: list[str]) -> pl.DataFrame:
        """Row groups outside of the slice are not read."""
        return self._collect(self.frame.select(columns).slice(start, rows))

    def blocks(self, rows: int, columns: list[str]) -> Iterator[tuple[int, pl.DataFrame]]:
        """All rows in order, so many at a time: one pass over the files."""
        start = 0
        lazy = self.frame.select(columns)
        try:
            for frame in lazy.collect_batches(chunk_size=rows, maintain_order=True):
                yield start, frame
                start += len(frame)
        except pl.exceptions.PolarsError as error:
            raise csv_fault(self.files) or _unreadable(self.where, error) from error

    def _collect(self, lazy: pl.LazyFrame) -> pl.DataFrame:
        try:
            return lazy.collect()
        except (pl.exceptions.PolarsError, OSError) as error:
            raise csv_fault(self.files) or _unreadable(self.where, error) from error


def open_table(path: Path) -> TableRows:
    """Reads the files' heads only.

    Raises: DataError for no file, a mixture of formats, different columns, a damaged file or no row.
    """
    files = table_files(path)
    suffix = files[0].suffix.lower()
    for file in files:
        if file.suffix.lower() != suffix:
            raise DataError(
                f"{path}: parquet and CSV files are mixed ({files[0].name}, {file.name}); allowed: one format"
            )
        _check_whole(file)
        if suffix == ".csv":
            check_header(file)
    where = str(path) if len(files) == 1 or path.is_dir() else f"{path} ({len(files)} files)"
    try:
        scans = [_scan(file) for file in files]
        schemas = [dict(scan.collect_schema()) for scan in scans]
        _check_columns(files, schemas)
        lazy = pl.concat(scans, how="vertical_relaxed")
        counts = [int(scan.select(pl.len()).collect().item()) for scan in scans]
        schema = dict(lazy.collect_schema())
    except (pl.exceptions.PolarsError, OSError) as error:
        raise csv_fault(files) or _unreadable(where, error) from error
    if not sum(counts):
        raise DataError(f"{where}: the table has no row (columns: {', '.join(schema)})")
    return TableRows(files, where, schema, counts, bytes=sum(file.stat().st_size for file in files), frame=lazy)


def read_table(path: Path, text_columns: list[str] | None = None) -> pl.DataFrame:
    """A whole table; `text_columns` are kept as text where a CSV file would be read as numbers."""
    table = open_table(Path(path))
    if table.files[0].suffix.lower() == ".csv" and text_columns:
        kept: dict[str, type[pl.DataType]] = {column: pl.String for column in text_columns if column in table.schema}
        return pl.concat([_scan(file, kept) for file in table.files], how="vertical_relaxed").collect()
    return table.read(list(table.schema))


def table_files(path: Path) -> list[Path]:
    """The files of a table, in order of their names."""
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
    elif path.is_file():
        files = [path]
    else:
        anchor = Path(path.anchor)
        files = sorted(file for file in anchor.glob(str(path.relative_to(path.anchor))) if file.is_file())
    if not files:
        raise DataError(f"{path}: no table there; allowed: a file, directory or glob of {' or '.join(SUFFIXES)}")
    for file in files:
        if file.suffix.lower() not in SUFFIXES:
            raise DataError(f"{file}: the format {file.suffix!r} cannot be read; allowed: {' or '.join(SUFFIXES)}")
    return files


def _scan(file: Path, kept: dict[str, type[pl.DataType]] | None = None) -> pl.LazyFrame:
    if file.suffix.lower() == ".parquet":
        return pl.scan_parquet(file, glob=False)
    separator = csv_separator(file)
    return pl.scan_csv(
        file, glob=False, infer_schema_length=None, schema_overrides=kept, separator=separator, try_parse_dates=True
    )


def _check_whole(file: Path) -> None:
    """A parquet file begins and ends with PAR1; one that was cut does not end so."""
    size = file.stat().st_size
    if size == 0:
        raise DataError(f"{file}: the file is empty (0 bytes)")
    if file.suffix.lower() != ".parquet":
        return
    with file.open("rb") as stream:
        start = stream.read(len(_MAGIC))
        stream.seek(max(size - len(_MAGIC), 0))
        end = stream.read()
    if start != _MAGIC:
        raise DataError(f"{file}: no parquet file (it begins with {start!r}; expected {_MAGIC!r})")
    if end != _MAGIC:
        raise DataError(f"{file}: the parquet file is cut or damaged ({size} bytes, its end is missing); copy it again")


def _check_columns(files: list[Path], schemas: list[dict[str, pl.DataType]]) -> None:
    for file, schema in zip(files[1:], schemas[1:], strict=True):
        if list(schema) != list(schemas[0]):
            only = [name for name in (*schema, *schemas[0]) if (name in schema) != (name in schemas[0])]
            difference = f"column {only[0]!r} is in one of them only" if only else "their order differs"
            raise DataError(f"{file}: its columns are not those of {files[0].name}: {difference}")


def _unreadable(where: str, error: Exception) -> DataError:
    first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return DataError(f"{where}: the table cannot be read ({first_line})")
