"""`polytask heads`: tasks that join a trained model or leave it, and nothing else changes."""

from pathlib import Path
from typing import Annotated

import typer

from polytask.cli.options import DataDir, Out, Root, Source, comma_separated, data_folder

ATTACH_EXAMPLES = ("polytask heads attach runs/first --from runs/new-task --out both",)
TRIM_EXAMPLES = ("polytask heads trim runs/first --data rows.csv --out trimmed --threshold 0.01",)
DETACH_EXAMPLES = ("polytask heads detach runs/first --tasks click --out smaller",)

Model = Annotated[Path, typer.Argument(metavar="DIR", help="What `train` wrote, or one of its checkpoints.")]


def attach(
    model: Model,
    *,
    other: Annotated[Path, typer.Option("--from", metavar="DIR", help="The model that has learnt the tasks.")],
    out: Out,
    tasks: Annotated[
        str | None, typer.Option("--tasks", metavar="A,B", help="Of the other model; else all that the first lacks.")
    ] = None,
) -> None:
    """Give a model the tasks of another one that has started from it and trained nothing but them."""
    from polytask.cli.showing import console
    from polytask.evaluation.heads import attach as run

    run(model, other, out, tasks=comma_separated(tasks))
    console().print(_said(out), soft_wrap=True, markup=False)


def detach(
    model: Model,
    *,
    tasks: Annotated[str, typer.Option("--tasks", metavar="A,B", help="Those that leave.")],
    out: Out,
) -> None:
    """Write a model without some of its tasks and what is theirs alone."""
    from polytask.cli.showing import console
    from polytask.evaluation.heads import detach as run

    run(model, comma_separated(tasks) or [], out)
    console().print(_said(out), soft_wrap=True, markup=False)


def trim(
    model: Model,
    *,
    data: Annotated[str, typer.Option("--data", metavar="TABLE", help="Rows: .parquet, .csv or .npz.")],
    out: Out,
    threshold: Annotated[
        float,
        typer.Option("--threshold", metavar="SHARE", help="Of a task's tokens that must use an expert, and more."),
    ] = 0.0,
    source: Source = None,
    root: Root = None,
    data_dir: DataDir = None,
) -> None:
    """Write a modular model (mod_squad) without the experts that its tasks do not use on these rows."""
    import polars

    from polytask.cli.showing import console
    from polytask.cli.tables import open_for
    from polytask.evaluation.heads import trim as run
    from polytask.evaluation.trained import load

    trained = load(model)
    rows = open_for(trained, data, data_folder(data_dir), trained.columns(None, source), root)
    run(trained, polars.concat([frame for frame, _ in rows]), out, threshold=threshold, source=source)
    console().print(_said(out), soft_wrap=True, markup=False)


def _said(out: Path) -> str:
    from polytask.checkpoints import read_checkpoint

    card = read_checkpoint(out).card
    return f"{out}: {', '.join(card['tasks'])}, {card['parameters']['parameters']:,} parameters"
