"""Tables that a trained model reads or that predictions are written to."""

import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from polytask.checkpoints.directory import write_file
from polytask.core.errors import BadValue, DataError, MissingInput, PolytaskError, UnknownName
from polytask.tasks.data_spec import SPLITS, DataSpec, SplitSpec
from polytask.tasks.features.feature import Place
from polytask.tasks.sources.opening import resolve

if TYPE_CHECKING:
    from polytask.evaluation.trained import Trained

BLOCK_ROWS = 50_000

Writer = Callable[[pl.DataFrame, io.BytesIO], Any]
_WRITERS: dict[str, Writer] = {
    ".parquet": lambda frame, file: frame.write_parquet(file),
    ".csv": lambda frame, file: frame.write_csv(file),
}


def writer_of(out: Path) -> Writer:
    """By the file's suffix; asked for before anything is computed."""
    if out.suffix.lower() not in _WRITERS:
        raise BadValue("--out", str(out), f"a file that ends with {' or '.join(_WRITERS)}")
    if not out.parent.is_dir():
        raise DataError(f"--out {out}: there is no folder {out.parent}")
    return _WRITERS[out.suffix.lower()]


def write_frame(frames: Sequence[pl.DataFrame], out: Path, write: Writer) -> None:
    """The file appears whole or not at all."""
    content = io.BytesIO()
    write(pl.concat(frames), content)
    write_file(out, content.getvalue())


def open_for(
    trained: "Trained", data: str, data_dir: Path | None, columns: Sequence[str], root: Path | None = None
) -> Iterator[tuple[pl.DataFrame, Place]]:
    """The table in blocks of rows, each with its place; `columns` are those that must be there. Paths of images start
    from `root`, else from the table's folder."""
    rows = _open(trained, data, data_dir, root)
    _check_columns(rows, columns)
    for start, frame in rows.blocks(BLOCK_ROWS, list(columns)):
        yield frame, Place(rows.where, np.arange(start, start + len(frame)))


def labelled_rows(
    trained: "Trained",
    data: str,
    data_dir: Path | None,
    tasks: Sequence[str] | None,
    split: str | None,
    root: Path | None = None,
    source: str | None = None,
) -> tuple[pl.DataFrame, Place, str]:
    """All rows or those of a split, in memory, their place, and in words which ones they are."""
    rows = _open(trained, data, data_dir, root)
    features = trained.columns(tasks, source)  # which knows whether there are such tasks
    labels = [column for task in tasks or trained.targets for column in trained.targets[task].task.columns]
    columns = list(dict.fromkeys([*features, *labels]))
    known = _split_of(trained, tasks, source)
    by_column = known is not None and known.column in rows.schema
    if split is None:
        _check_columns(rows, columns)
        hint = "all rows scored"
        if by_column:
            hint += f", training rows among them (column {known.column!r}); --split test scores the test rows only"
        return rows.read(columns), Place(rows.where), hint
    if split not in SPLITS:
        raise UnknownName("split", split, SPLITS, "--split")
    if known is None or known.column is None:
        way = "not by a column" if known is None else f"by {known.kind}, not by a column"
        raise MissingInput(
            f"--split {split}: the model's data was split {way}, so {data} does not say which rows are which; "
            "give a file that has these rows only"
        )
    _check_columns(rows, [*columns, known.column])
    from polytask.tasks.splits import by_column as numbers_of

    frame = rows.read(list(dict.fromkeys([*columns, known.column])))
    chosen = np.flatnonzero(numbers_of(frame, known, rows.where) == SPLITS.index(split))
    if not len(chosen):
        raise DataError(f"{rows.where}: the split {split!r} is empty (by column {known.column!r})")
    return frame[chosen], Place(rows.where, chosen), f"the {split} rows by column {known.column!r}"


def _open(trained: "Trained", data: str, data_dir: Path | None, root: Path | None) -> Any:
    from polytask.tasks.sources.arrays import rows_from_npz
    from polytask.tasks.sources.raw import FrameRows
    from polytask.tasks.sources.table import open_table, read_table

    path = resolve(data, data_dir, None)
    if path.suffix.lower() == ".npz":
        return rows_from_npz(path)
    table = open_table(path)
    trained.images_from(root or (path if path.is_dir() else table.files[0].parent))
    text = [column for column in trained.text_columns if column in table.schema]
    if table.files[0].suffix.lower() != ".csv" or not text:
        return table
    return FrameRows(read_table(path, text), table.where)


def _check_columns(rows: Any, columns: Sequence[str]) -> None:
    for column in columns:
        if column not in rows.schema:
            raise UnknownName("column", column, rows.schema, f"{rows.where} (the model needs it)")


def _split_of(trained: "Trained", tasks: Sequence[str] | None, source: str | None) -> SplitSpec | None:
    """How the rows of these tasks were split; None where the recipe does not say or the sources differ."""
    from polytask.core.validation import validated
    from polytask.tasks.sources.opening import effective_split

    try:
        specs = validated(DataSpec, trained.recipe.get("data", {}), "data").named_sources()
    except PolytaskError:  # a model from Python may say less than a recipe
        return None
    named = trained.sources_of(tasks) if source is None else [source]
    splits = [effective_split(specs[name]) for name in named if name in specs]
    return splits[0] if splits and all(other == splits[0] for other in splits) else None
