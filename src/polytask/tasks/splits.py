"""Which rows train, select and test: an int8 a row, so that streamed tables are split as those in memory are."""

from collections.abc import Callable

import numpy as np
import polars as pl

from polytask.core.errors import DataError, UnknownName
from polytask.core.noise import Noise
from polytask.tasks.data_spec import SPLITS, RowsSpec, SplitSpec

UNUSED = -1  # a row that belongs to no split; 0, 1, 2 are SPLITS
DEFAULT_FRACTIONS = (0.8, 0.1, 0.1)
_ALIASES = {"train": 0, "training": 0, "valid": 1, "validation": 1, "val": 1, "dev": 1, "test": 2, "testing": 2}


def split_columns(spec: SplitSpec) -> list[str]:
    """The columns that must be read to split."""
    return [column for column in (spec.column, spec.time, spec.group, spec.scaffold) if column is not None]


def assign(frame: pl.DataFrame, spec: SplitSpec, seed: int, where: str) -> np.ndarray:
    """int8 [N]: 0 train, 1 valid, 2 test.

    Args: frame: all rows, with the columns that `split_columns` names; seed: used where the spec has none.
    Raises: DataError for an empty split or a value that names no split.
    """
    for column in split_columns(spec):
        if column not in frame.columns:
            raise UnknownName("column", column, frame.columns, where=f"{where}, split")
    noise = Noise(seed if spec.seed is None else spec.seed, "split")
    assignment = _WAYS[spec.kind](frame, spec, noise, where)
    check_not_empty(assignment, spec, where)
    return assignment


def check_not_empty(assignment: np.ndarray, spec: SplitSpec, where: str) -> None:
    """Raises: DataError when a split has no row (a test share declared as 0 may be empty)."""
    counts = np.bincount(assignment[assignment >= 0], minlength=len(SPLITS))
    fractions = spec.fractions or DEFAULT_FRACTIONS
    for number, split in enumerate(SPLITS):
        wanted = spec.kind == "column" or fractions[number] > 0
        if wanted and not counts[number]:
            found = ", ".join(f"{name} {count}" for name, count in zip(SPLITS, counts, strict=True))
            raise DataError(
                f"{where}: the split {split!r} is empty (by {spec.kind}; rows: {found} of {len(assignment)})"
            )


def sample(assignment: np.ndarray, rows: int | RowsSpec | None, seed: int) -> np.ndarray:
    """The assignment with rows beyond the wanted number set to UNUSED; which ones stay is drawn."""
    if rows is None:
        return assignment
    rank = np.empty(len(assignment), dtype=np.int64)
    rank[Noise(seed, "rows").permutation(len(assignment))] = np.arange(len(assignment))
    kept = assignment.copy()
    if isinstance(rows, int):
        used = np.flatnonzero(assignment >= 0)
        kept[used[np.argsort(rank[used])[rows:]]] = UNUSED
        return kept
    for number, split in enumerate(SPLITS):
        most = getattr(rows, split)
        members = np.flatnonzero(assignment == number)
        if most is not None:
            kept[members[np.argsort(rank[members])[most:]]] = UNUSED
    return kept


def by_column(frame: pl.DataFrame, spec: SplitSpec, where: str) -> np.ndarray:
    """int8 [N] from the split column alone; a split may have no row here."""
    values = frame[spec.by].cast(pl.String)
    if any(getattr(spec, split) is not None for split in SPLITS):
        meaning = {}
        for number, split in enumerate(SPLITS):
            given = getattr(spec, split)
            for value in given if isinstance(given, list | tuple) else [given]:
                if value is not None:
                    meaning[str(value)] = number
    else:
        meaning = _ALIASES
    codes = values.replace_strict(meaning, default=None, return_dtype=pl.Int8)
    if codes.null_count():
        row = int(codes.is_null().arg_true()[0])
        raise DataError(
            f"{where}, row {row}: split column {spec.column!r} is {values[row]!r}; allowed: {', '.join(meaning)}"
        )
    return codes.to_numpy().copy()


def _by_fractions(frame: pl.DataFrame, spec: SplitSpec, noise: Noise, where: str) -> np.ndarray:
    assignment = np.empty(len(frame), dtype=np.int8)
    assignment[noise.permutation(len(frame))] = _shares(len(frame), spec)
    return assignment


def _by_time(frame: pl.DataFrame, spec: SplitSpec, noise: Noise, where: str) -> np.ndarray:
    """Rows of one moment stay together, in the earlier split."""
    times = frame[spec.by]
    _no_missing(times, where)
    moments = times.rank("dense").to_numpy().astype(np.int64) - 1
    rows_until = np.cumsum(np.bincount(moments)) - 1  # position, in time order, of the last row of each moment
    first = np.concatenate([[0], rows_until[:-1] + 1])
    return _shares(len(frame), spec)[first[moments]]


def _by_group(frame: pl.DataFrame, spec: SplitSpec, noise: Noise, where: str) -> np.ndarray:
    """Whole groups in random order, until a split has its share of the rows."""
    groups = frame[spec.by]
    _no_missing(groups, where)
    codes = groups.rank("dense").to_numpy().astype(np.int64) - 1
    return _whole_groups(codes, noise.permutation(int(codes.max(initial=-1)) + 1), spec)


def _by_scaffold(frame: pl.DataFrame, spec: SplitSpec, noise: Noise, where: str) -> np.ndarray:
    """Scaffolds from the most to the least frequent, as in MoleculeNet (Wu et al. 2018): rare ones end in test."""
    from polytask.tasks.features.molecules import scaffolds

    codes = scaffolds(frame[spec.by], where)
    size = np.bincount(codes)  # codes number the scaffolds in the order of their first rows, which breaks ties
    return _whole_groups(codes, np.argsort(-size, kind="stable"), spec)


def _whole_groups(codes: np.ndarray, order: np.ndarray, spec: SplitSpec) -> np.ndarray:
    """A group goes to the first split that still has room for its middle row."""
    size = np.bincount(codes, minlength=len(order))[order]
    middle = np.cumsum(size) - (size + 1) // 2
    of_group = np.empty(len(order), dtype=np.int8)
    of_group[order] = _shares(len(codes), spec)[middle]
    return of_group[codes]


def _shares(n: int, spec: SplitSpec) -> np.ndarray:
    """int8 [n], ascending: the first fraction 0, the second 1, the rest 2."""
    fractions = spec.fractions or DEFAULT_FRACTIONS
    bounds = np.rint(np.cumsum(fractions)[:2] * n).astype(np.int64)
    return np.searchsorted(bounds, np.arange(n), side="right").astype(np.int8)


def _no_missing(series: pl.Series, where: str) -> None:
    if series.null_count():
        row = int(series.is_null().arg_true()[0])
        raise DataError(f"{where}, row {row}: split column {series.name!r} is missing; allowed: a value in every row")


_WAYS: dict[str, Callable[[pl.DataFrame, SplitSpec, Noise, str], np.ndarray]] = {
    "column": lambda frame, spec, noise, where: by_column(frame, spec, where),
    "fractions": _by_fractions,
    "time": _by_time,
    "group": _by_group,
    "scaffold": _by_scaffold,
}
