"""Text sources without each other's test sentences.

mr, sst2 and subj were cut from the same film reviews: half of the test sentences of mr are training sentences of sst2,
with the same labels. One model for all would have seen them, single-task models would not, and the comparison would
measure that. Here every training row goes whose sentence (letters and digits, in lower case) is in the validation or
test split of any source, for the joint and for the single-task models alike.
"""

import re
from pathlib import Path

import polars as pl

from polytask.tasks.data_spec import DataSpec


def prepare(spec: DataSpec, data_dir: Path, out: Path) -> dict[str, int]:
    """Writes the recipe's tables to `out` under their own names, and returns how many training rows each has lost."""
    sources = spec.named_sources()
    frames = {name: pl.read_parquet(data_dir / str(source.table)) for name, source in sources.items()}
    kept_back: dict[str, None] = {}
    for frame in frames.values():
        held_out = frame.filter(pl.col("split") != "train")["text"]
        kept_back |= dict.fromkeys(normalised(text) for text in held_out)
    lost = {}
    for name, frame in frames.items():
        seen = pl.Series([normalised(text) in kept_back for text in frame["text"]], dtype=pl.Boolean)
        distinct = frame.filter((pl.col("split") != "train") | ~seen)
        lost[name] = len(frame) - len(distinct)
        path = out / str(sources[name].table)
        path.parent.mkdir(parents=True, exist_ok=True)
        distinct.write_parquet(path)
    return lost


def normalised(text: str) -> str:
    """
    >>> normalised("It 's GOOD .")
    'itsgood'
    """
    return re.sub(r"[^a-z0-9]", "", text.lower())
