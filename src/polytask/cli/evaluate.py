"""`polytask evaluate`: scores of a directory on rows with labels."""

from pathlib import Path
from typing import Annotated

import typer

from polytask.cli.options import AsJson, DataDir, Root, Source, comma_separated, data_folder

EXAMPLES = (
    "polytask evaluate runs/first --data test.csv",
    "polytask evaluate runs/first --data all.parquet --split test --json",
)


def evaluate(
    model: Annotated[Path, typer.Argument(metavar="DIR", help="What `train` wrote, or one of its checkpoints.")],
    data: Annotated[str, typer.Option("--data", metavar="TABLE", help="Rows with labels: .parquet, .csv or .npz.")],
    split: Annotated[
        str | None,
        typer.Option(
            "--split", metavar="NAME", help="Only rows that the recipe's split column puts in train, valid or test."
        ),
    ] = None,
    tasks: Annotated[str | None, typer.Option("--tasks", metavar="A,B", help="These tasks only.")] = None,
    source: Source = None,
    root: Root = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Score a trained model on rows with labels: every metric of every task."""
    from polytask.cli.showing import console, metrics_table, show_json
    from polytask.cli.tables import labelled_rows
    from polytask.evaluation.formatting import counted
    from polytask.evaluation.trained import load

    trained = load(model)
    named = comma_separated(tasks)
    frame, place, remark = labelled_rows(trained, data, data_folder(data_dir), named, split, root, source)
    metrics = trained.evaluate(frame, named, place, source)
    if as_json:
        show_json({"rows": frame.height, "scored": remark, "tasks": metrics})
        return
    screen = console()
    screen.print(metrics_table(metrics, trained.targets))
    screen.print(f"{counted(frame.height, 'row')} of {data}: {remark}.", soft_wrap=True, markup=False)
