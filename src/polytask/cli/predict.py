"""`polytask predict`: raw rows in, a column a task out."""

from pathlib import Path
from typing import Annotated, Any

import typer

from polytask.cli.options import AsJson, DataDir, Root, Source, comma_separated, data_folder

EXAMPLES = (
    "polytask predict runs/first --data new.csv --out predictions.parquet",
    "polytask predict runs/first --data new.parquet --out predictions.csv --tasks income",
)


def predict(
    model: Annotated[Path, typer.Argument(metavar="DIR", help="What `train` wrote, or one of its checkpoints.")],
    data: Annotated[str, typer.Option("--data", metavar="TABLE", help="Rows: .parquet, .csv or .npz.")],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="Predictions: .parquet or .csv.")],
    tasks: Annotated[str | None, typer.Option("--tasks", metavar="A,B", help="These tasks only.")] = None,
    source: Source = None,
    root: Root = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Predict new rows with a trained model.

    Binary tasks give the probability of the positive value; multiclass tasks the class, and the probability of each
    class in columns of their own; regressions a value in the label's units. Rows keep their order.
    """
    from polytask.cli.showing import show_json
    from polytask.cli.tables import open_for, write_frame, writer_of
    from polytask.evaluation.formatting import counted
    from polytask.evaluation.trained import load

    write = writer_of(out)
    trained = load(model)
    named = comma_separated(tasks)
    rows = open_for(trained, data, data_folder(data_dir), trained.columns(named, source), root)
    frames: list[Any] = [trained.predict(frame, named, place, source) for frame, place in rows]
    write_frame(frames, out, write)
    columns, height = frames[0].columns, sum(len(frame) for frame in frames)
    if as_json:
        show_json({"out": str(out), "rows": height, "columns": columns})
        return
    typer.echo(f"{out}: {counted(height, 'row')}, {counted(len(columns), 'column')}: {_shortened(columns)}")


def _shortened(columns: list[str], most: int = 8) -> str:
    more = f" and {len(columns) - most} more" if len(columns) > most else ""
    return ", ".join(columns[:most]) + more
