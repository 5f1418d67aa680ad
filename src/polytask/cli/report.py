"""`polytask report`: one self-contained page from runs, comparisons and merged models."""

from pathlib import Path
from typing import Annotated

import typer

EXAMPLES = ("polytask report results", "polytask report runs/first runs/second --out report.html")


def report(
    directories: Annotated[
        list[Path], typer.Argument(metavar="DIR...", help="What `train`, `compare` or `merge` wrote.")
    ],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="The page; by default report.html in the first DIR.")
    ] = None,
) -> None:
    """Write the report: tables, learning curves, conflicts, weights, recipe and versions in one file.

    It needs no network, on any screen.
    """
    from polytask.core.errors import CheckpointError, nearest_beside
    from polytask.evaluation.report.page import write_report

    for directory in directories:
        if not directory.is_dir():
            raise CheckpointError(f"{directory}: no such directory{nearest_beside(directory, folders_only=True)}")
    target = directories[0] / "report.html" if out is None else out
    target.parent.mkdir(parents=True, exist_ok=True)
    typer.echo(write_report(directories, target))
