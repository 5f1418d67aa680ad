"""`polytask demo`: the comparison on the bundled data."""

import shutil
from pathlib import Path
from typing import Annotated

import typer

from polytask.cli.options import Out

RECIPE = "multidigits"
EXAMPLES = ("polytask demo", "polytask demo --out somewhere --fresh")


def demo(
    out: Out = Path("demo"),
    fresh: Annotated[bool, typer.Option("--fresh", help="Train again what an earlier demo has finished.")] = False,
) -> None:
    """Train and compare on bundled data, and write a report.

    Every image shows two overlapping handwritten digits. One model learns three tasks: the left digit, the right digit
    and their sum; beside it one model a task is trained, under the same budget.
    """
    from polytask.cli.progress import Progress
    from polytask.cli.showing import reused_line, show_comparison
    from polytask.recipes.reading import read_recipe
    from polytask.recipes.run import compare

    recipe = read_recipe(RECIPE).recipe.resolved()
    _prepare(out, recipe, fresh)
    typer.echo("Two overlapping digits in one image; three tasks: the left digit, the right digit, their sum.")
    typer.echo("One model for all three, balanced in several ways, beside one model for each.\n")
    with Progress("reading the data") as progress:
        results = compare(RECIPE, out=out, listeners=[progress])
    show_comparison(results)
    typer.echo(reused_line(progress, "--fresh trains again"), nl=False)
    typer.echo(f"\nThe report, one file that needs no network:  {out / 'report.html'}")
    typer.echo("Your own table:  polytask init --data your.csv --out recipe.yaml")
    typer.echo("                 polytask compare recipe.yaml --rules equal,upgrad --out results")


def _prepare(out: Path, recipe: dict, fresh: bool) -> None:
    """Finished runs of the same recipe are kept; those of an older version's are not, and nothing else is touched."""
    import yaml

    from polytask.core.errors import CheckpointError

    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    saved = out / "recipe.yaml"
    if not saved.is_file():
        raise CheckpointError(f"{out}: not empty, and no earlier demo; name another directory with --out")
    if fresh or yaml.safe_load(saved.read_text(encoding="utf-8")) != yaml.safe_load(yaml.safe_dump(recipe)):
        shutil.rmtree(out / "runs", ignore_errors=True)
        for name in ("results.json", "report.html", "table.csv", "table.tex", "recipe.yaml"):
            (out / name).unlink(missing_ok=True)
