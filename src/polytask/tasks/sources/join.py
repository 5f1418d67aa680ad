"""Columns of a second table, found by a column that both have: where labels and the split are files of their own."""

from dataclasses import replace

from polytask.core.errors import DataError, UnknownName
from polytask.tasks.sources.table import TableRows


def joined(rows: TableRows, other: TableRows, by: str) -> TableRows:
    """The rows with the columns of `other`'s row that has the same value in column `by`.

    Raises:
        UnknownName: a table lacks the column.
        DataError: the column is of two types, a value stands twice in `other`, a row finds none, or a name is in both.
    """
    for table in (rows, other):
        if by not in table.schema:
            raise UnknownName("column", by, list(table.schema), where=f"{table.where}, data.join")
    if rows.schema[by] != other.schema[by]:
        types = f"{rows.schema[by]} in {rows.where}, {other.schema[by]} in {other.where}"
        raise DataError(f"data.join: column {by!r} is of two types ({types})")
    for name in other.schema:
        if name in rows.schema and name != by:
            both = f"{rows.where} and {other.where}"
            raise DataError(f"data.join: column {name!r} is in both {both}; allowed: only {by!r}")
    _check_partners(rows, other, by)
    frame = rows.frame.join(other.frame, on=by, how="left", maintain_order="left")
    schema = rows.schema | {name: kind for name, kind in other.schema.items() if name != by}
    return replace(rows, where=f"{rows.where} with {other.where}", schema=schema, frame=frame)


def _check_partners(rows: TableRows, other: TableRows, by: str) -> None:
    """Each row finds exactly one partner."""
    wanted, given = rows.read([by])[by], other.read([by])[by]
    twice = given.filter(given.is_duplicated())
    if len(twice):
        raise DataError(f"{other.where}: {twice[0]!r} stands {int((given == twice[0]).sum())} times in column {by!r}")
    alone = wanted.is_null() | ~wanted.is_in(given.drop_nulls().implode())
    if alone.any():
        first = int(alone.arg_true()[0])
        raise DataError(
            f"{rows.where}, row {first}: {by} {wanted[first]!r} is not in {other.where} ({int(alone.sum())} such rows)"
        )
