"""Rows that one source is tested on and another trains on."""

from collections.abc import Mapping

import numpy as np
import polars as pl

from polytask.tasks.sources.raw import RawRows

_BLOCK_ROWS = 100_000
LEAST_SHARE = 0.01  # of the held-out rows; below it is chance
MOST_NAMED = 3  # pairs of sources


def shared_rows(sources: Mapping[str, tuple[RawRows, list[str], np.ndarray]]) -> str | None:
    """A sentence about held-out rows whose features stand in another source's training rows; None if there are none.

    A model of all tasks has seen such a row, a single-task model has not, so comparing the two there is unfair.

    Args: sources: name -> (rows, feature columns, split of each row).
    """
    if len(sources) < 2:
        return None
    hashes = {name: _hashes(*source) for name, source in sources.items()}
    found: list[tuple[float, str]] = []
    for name, (_, held_out) in hashes.items():
        for other, (training, _) in hashes.items():
            shared = int(np.isin(held_out, training).sum()) if other != name else 0
            if shared and shared >= LEAST_SHARE * len(held_out):
                words = f"{shared} of {len(held_out)} valid and test rows of {name} are training rows of {other}"
                found.append((shared / len(held_out), words))
    if not found:
        return None
    found.sort(key=lambda pair: -pair[0])
    more = f", and so between {len(found) - MOST_NAMED} more pairs" if len(found) > MOST_NAMED else ""
    named = "; ".join(words for _, words in found[:MOST_NAMED])
    return f"sources share rows: {named}{more}; take them out before comparing with single-task models"


def _hashes(rows: RawRows, columns: list[str], assignment: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of training rows and of held-out rows a number that depends on the features' values alone; lists and arrays are
    not looked at."""
    simple = [column for column in columns if not rows.schema[column].is_nested() and rows.schema[column] != pl.Object]
    if not simple:
        return np.empty(0, dtype=np.uint64), np.empty(0, dtype=np.uint64)
    values = np.concatenate([frame.hash_rows().to_numpy() for _, frame in rows.blocks(_BLOCK_ROWS, simple)])
    return values[assignment == 0], values[assignment > 0]
