"""`polytask compare`: variants beside single-task baselines, under one budget."""

from typing import Annotated

import typer

from polytask.cli.options import AsJson, DataDir, Out, Settings, comma_separated, data_folder

EXAMPLES = (
    "polytask compare recipe.yaml --rules equal,upgrad --seeds 5 --out results",
    "polytask compare recipe.yaml --sharing hard,mmoe --out results",
    "polytask compare recipe.yaml --vary train.batch_size=64,256 --out results",
)


def compare(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe file, or a shipped recipe's name.")],
    out: Out,
    rules: Annotated[
        str | None, typer.Option("--rules", metavar="A,B", help="Balancing rules to try (see `polytask rules`).")
    ] = None,
    sharing: Annotated[
        str | None, typer.Option("--sharing", metavar="A,B", help="Sharing architectures to try: hard, mmoe.")
    ] = None,
    vary: Annotated[
        list[str] | None,
        typer.Option("--vary", metavar="PATH=A,B", help="Values to try for any entry of the recipe; repeatable."),
    ] = None,
    seeds: Annotated[
        int | None, typer.Option("--seeds", min=1, metavar="N", help="Seeds of every row; five or more are honest.")
    ] = None,
    learning_rates: Annotated[
        str | None,
        typer.Option(
            "--learning-rates",
            metavar="A,B",
            help="Multiples of the recipe's learning rate that every row tries on the validation split.",
        ),
    ] = None,
    parameters: Annotated[
        int | None,
        typer.Option(
            "--parameters",
            min=1,
            metavar="N",
            help="Scale the layers of every row, the single-task models together, to about so many parameters.",
        ),
    ] = None,
    settings: Settings = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Compare variants with single-task models, and write a report.

    Every row has the same budget: the same optimiser steps, the same learning rates to choose from on the validation
    split, the same seeds; test is scored once. What the command does not say comes from `compare:` in the recipe. A
    comparison that was interrupted goes on where it stopped.
    """
    from polytask.cli.progress import Progress
    from polytask.cli.showing import reused_line, show_comparison, show_json
    from polytask.core.errors import BadValue
    from polytask.recipes.reading import parsed_variations
    from polytask.recipes.run import compare as run

    try:
        multiples = None if learning_rates is None else [float(rate) for rate in comma_separated(learning_rates) or ()]
    except ValueError:
        raise BadValue("--learning-rates", learning_rates, "numbers above 0, such as 0.333,1,3") from None
    with Progress("reading the data") as progress:
        results = run(
            recipe,
            out=out,
            rules=comma_separated(rules),
            sharing=comma_separated(sharing),
            vary=parsed_variations(vary or ()),
            seeds=seeds,
            learning_rate_multiples=multiples,
            parameters=parameters,
            data_dir=data_folder(data_dir),
            settings=settings or (),
            listeners=[progress],
        )
    if as_json:
        show_json(results)
        return
    show_comparison(results)
    typer.echo(reused_line(progress, "another --out trains them again"), nl=False)
    typer.echo(f"\nThe report:  {out / 'report.html'}")
    typer.echo(f"The table:   {out / 'table.csv'}, {out / 'table.tex'}")
