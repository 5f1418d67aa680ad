"""What polars does not say about a CSV file: how its columns are separated, and in which line it goes wrong."""

import csv
from collections.abc import Iterable
from pathlib import Path

from polytask.core.errors import DataError

SEPARATORS = (",", ";", "\t", "|")


def csv_separator(file: Path) -> str:
    """The first of the separators that the header has; a comma where it has none (a table of one column)."""
    header = _header_line(file)
    return next((sign for sign in SEPARATORS if sign in header), SEPARATORS[0])


def check_header(file: Path) -> None:
    """Raises: DataError for a column name that stands twice, which would otherwise be renamed silently."""
    names = next(csv.reader([_header_line(file)], delimiter=csv_separator(file)), [])
    for position, name in enumerate(names):
        if name in names[:position]:
            first = names.index(name)
            raise DataError(
                f"{file}: the header has {name!r} twice (columns {first + 1} and {position + 1}); rename one"
            )


def csv_fault(files: Iterable[Path]) -> DataError | None:
    """Why polars refused a file, with its line: not UTF-8, or more fields than the header; None where neither is so."""
    for file in files:
        if file.suffix.lower() != ".csv":
            continue
        try:
            with file.open(encoding="utf-8-sig", newline="") as stream:
                rows = csv.reader(stream, delimiter=csv_separator(file))
                width = len(next(rows, []))
                for row in rows:
                    if len(row) > width:
                        return DataError(
                            f"{file}, line {rows.line_num}: {len(row)} fields, and the header has {width}; a field "
                            f"that contains {csv_separator(file)!r} stands in double quotes"
                        )
        except UnicodeDecodeError:
            return _not_utf8(file)
        except (csv.Error, OSError):  # then polars' own message has to do
            return None
    return None


def _not_utf8(file: Path) -> DataError:
    with file.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                found = line[error.start : error.start + 1]
                return DataError(f"{file}, line {number}: byte {found!r} is no UTF-8; save the table as UTF-8")
    return DataError(f"{file}: the text is no UTF-8; save the table as UTF-8")


def _header_line(file: Path) -> str:
    with file.open("rb") as stream:
        line = stream.readline()
    return line.removeprefix(b"\xef\xbb\xbf").decode("utf-8", errors="replace").rstrip("\r\n")
