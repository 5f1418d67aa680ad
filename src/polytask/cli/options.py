"""Options that several commands share, and the two values that come from the environment."""

import os
from pathlib import Path
from typing import Annotated

import typer

Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="The directory to write.")]
DataDir = Annotated[
    Path | None,
    typer.Option("--data-dir", metavar="DIR", help="Where data files are looked for first (else POLYTASK_DATA)."),
]
Root = Annotated[
    Path | None,
    typer.Option("--root", metavar="DIR", help="Where paths of images start (else from the table's folder)."),
]
Source = Annotated[
    str | None,
    typer.Option("--source", metavar="NAME", help="The source that the rows are of; tasks may be of others."),
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="PATH=VALUE", help="Change a value of the recipe: train.epochs=3; repeatable."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def data_folder(option: Path | None) -> Path | None:
    """--data-dir, else POLYTASK_DATA; it must be a folder."""
    from polytask.core.errors import DataError

    named = option or (Path(os.environ["POLYTASK_DATA"]) if os.environ.get("POLYTASK_DATA") else None)
    if named is not None and not named.is_dir():
        source = "--data-dir" if option else "POLYTASK_DATA"
        raise DataError(f"{source}: {named} is no folder")
    return named


def comma_separated(text: str | None) -> list[str] | None:
    """`a,b` -> ["a", "b"]; None stays."""
    return None if text is None else [part.strip() for part in text.split(",") if part.strip()]
