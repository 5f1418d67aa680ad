"""`polytask train`: one run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from polytask.cli.options import AsJson, DataDir, Out, Settings, data_folder

EXAMPLES = (
    "polytask train recipe.yaml --out runs/first",
    "polytask train multidigits --out runs/digits --set train.rule=upgrad",
    "torchrun --nproc-per-node 2 -m polytask train recipe.yaml --out runs/two",
)


def train(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe file, or a shipped recipe's name.")],
    out: Out,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in DIR from its last checkpoint.")] = False,
    settings: Settings = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Train one run: a model of all the recipe's tasks.

    DIR gets checkpoints, the events of the run and its results. The same seed gives the same model.
    """
    from polytask.cli.command import is_first_process
    from polytask.cli.progress import Progress
    from polytask.cli.showing import show_json
    from polytask.recipes.run import train as run

    with Progress("reading the data") as progress:
        progress.name = "training"
        results = run(
            recipe,
            out=out,
            data_dir=data_folder(data_dir),
            resume=resume,
            settings=settings or (),
            listeners=[progress],
        )
    if not is_first_process():
        return
    if as_json:
        show_json(results)
    else:
        _show(results, out)


def _show(results: Mapping[str, Any], out: Path) -> None:
    from polytask.cli.showing import console, show_scores
    from polytask.evaluation.formatting import counted, duration, magnitude

    show_scores(results)
    parameters = magnitude(results["parameters"]["total"])
    screen = console()
    screen.print(
        f"{counted(results['steps'], 'step')} in {duration(results['seconds'])}, best on validation at step "
        f"{results['best_step']:,}; {parameters} parameters.",
        soft_wrap=True,
    )
    screen.print(f"\nThe model:   {out / 'best'}", soft_wrap=True)
    screen.print(f"Use it:      polytask predict {out} --data new.csv --out predictions.csv", soft_wrap=True)
    screen.print(f"The report:  polytask report {out}", soft_wrap=True)
