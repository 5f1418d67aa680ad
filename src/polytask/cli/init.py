"""`polytask init`: a first recipe for a table."""

import os
from pathlib import Path
from typing import Annotated

import typer

from polytask.cli.options import DataDir, comma_separated, data_folder

EXAMPLES = (
    "polytask init --data houses.csv --out houses.yaml",
    "polytask init --data houses.csv --tasks price,sold --out houses.yaml",
    "polytask train houses.yaml --out runs/houses",
)


def init(
    data: Annotated[
        str,
        typer.Option("--data", metavar="TABLE", help="A .parquet or .csv file, directory or glob, or an .npz file."),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The recipe to write.")] = Path("recipe.yaml"),
    tasks: Annotated[
        str | None, typer.Option("--tasks", metavar="A,B", help="The label columns, instead of guessing them.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace FILE if it exists.")] = False,
    data_dir: DataDir = None,
) -> None:
    """Draft a recipe from a table: guess which columns are labels, and of what kind.

    Nothing is asked; the guesses that somebody should check are comments in the recipe.
    """
    from polytask.checkpoints.directory import write_file
    from polytask.core.errors import DataError
    from polytask.evaluation.formatting import counted, listed
    from polytask.recipes.drafting import draft_text
    from polytask.recipes.reading import read_recipe
    from polytask.tasks.draft import draft_recipe
    from polytask.tasks.sources.opening import resolve

    if out.exists() and not force:
        raise DataError(f"{out}: exists; --force replaces it, --out names another file")
    if not out.parent.is_dir():
        raise DataError(f"--out {out}: there is no folder {out.parent}")
    path = resolve(data, data_folder(data_dir), None)
    draft = draft_recipe(path, comma_separated(tasks))
    draft.recipe["data"][draft.origin] = _from_recipe(path, out)
    read_recipe(draft.recipe)
    write_file(out, draft_text(draft.recipe, draft.remarks, str(path)).encode())
    drafted = [f"{name} ({_kind(task)})" for name, task in draft.recipe["tasks"].items()]
    typer.echo(f"{out}: {counted(len(drafted), 'task')}: {listed(drafted)}")
    if draft.remarks:
        typer.echo(f"\nGuesses to check ({'it is' if len(draft.remarks) == 1 else 'they are'} in the recipe too):")
        for remark in draft.remarks:
            typer.echo(f"  {remark}")
    typer.echo(f"\nThen:  polytask train {out} --out runs/{out.stem}")


def _kind(task: object) -> str:
    return str(task["kind"]) if isinstance(task, dict) else str(task)


def _from_recipe(path: Path, out: Path) -> str:
    """The table as seen from the recipe: relative where it lies below it, else absolute."""
    absolute = path.resolve() if path.exists() else Path(os.path.abspath(path))
    folder = out.resolve().parent
    return str(absolute.relative_to(folder)) if absolute.is_relative_to(folder) else str(absolute)
