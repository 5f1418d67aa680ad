"""`polytask recipes`: the shipped ones."""

import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from polytask.cli.options import DataDir, data_folder

EXAMPLES = (
    "polytask recipes",
    "polytask recipes census_income --out census_income.yaml",
    "polytask recipes --check --data-dir data",
)


def recipes(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Print this one.")] = None,
    check: Annotated[bool, typer.Option("--check", help="Run each whose data is at hand for two steps.")] = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="PATH", help="Write NAME to this file; --check: the runs' directory."),
    ] = None,
    data_dir: DataDir = None,
) -> None:
    """List the shipped recipes, or print one to start from."""
    from polytask.core.errors import DataError
    from polytask.recipes.reading import shipped_names, shipped_text

    names = shipped_names() if name is None else [name]
    if check:
        _check(names, out, data_folder(data_dir))
    elif name is None:
        _list(names)
    elif out is None:
        typer.echo(shipped_text(name), nl=False)
    else:
        text = shipped_text(name)
        if out.exists():
            raise DataError(f"{out}: exists; name another file")
        out.write_text(text, encoding="utf-8")
        typer.echo(f"{out}: the recipe {name}")


def _list(names: list[str]) -> None:
    from polytask.recipes.reading import read_recipe

    width = max(len(name) for name in names)
    for name in names:
        typer.echo(f"{name:<{width}}  {read_recipe(name).recipe.description or ''}")
    typer.echo("\nPrint one:  polytask recipes NAME")


def _check(names: list[str], out: Path | None, data_dir: Path | None) -> None:
    from polytask.recipes.check import check_recipe

    with tempfile.TemporaryDirectory() as scratch:
        for name in names:
            found: Any = check_recipe(name, (out or Path(scratch)) / name, data_dir)
            typer.echo(f"{name}: {found}")
