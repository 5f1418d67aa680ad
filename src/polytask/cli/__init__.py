"""The command line. Every heavy import is inside the command that needs it, so that `polytask --help` stays light."""

from typing import Annotated

import typer

import polytask
from polytask.cli import compare, demo, evaluate, heads, init, merge, predict, recipes, report, rules, store, train
from polytask.cli.command import register

app = typer.Typer(
    help=polytask.__doc__.splitlines()[0] if polytask.__doc__ else None,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"]},
)

register(app, "demo", demo.demo, examples=demo.EXAMPLES)
register(app, "init", init.init, examples=init.EXAMPLES)
register(app, "train", train.train, examples=train.EXAMPLES, loads=True)
register(app, "compare", compare.compare, examples=compare.EXAMPLES, loads=True)
register(app, "merge", merge.merge, examples=merge.EXAMPLES, loads=True)
stores = typer.Typer(help="Many fine-tuned models in one small directory.", no_args_is_help=True)
register(stores, "pack", store.pack, examples=store.PACK_EXAMPLES)
register(stores, "get", store.get, examples=store.GET_EXAMPLES)
app.add_typer(stores, name="store")
coming = typer.Typer(help="Tasks that join a trained model or leave it.", no_args_is_help=True)
register(coming, "attach", heads.attach, examples=heads.ATTACH_EXAMPLES, loads=True)
register(coming, "detach", heads.detach, examples=heads.DETACH_EXAMPLES, loads=True)
register(coming, "trim", heads.trim, examples=heads.TRIM_EXAMPLES, loads=True)
app.add_typer(coming, name="heads")
register(app, "predict", predict.predict, examples=predict.EXAMPLES, loads=True)
register(app, "evaluate", evaluate.evaluate, examples=evaluate.EXAMPLES, loads=True)
register(app, "rules", rules.rules, examples=rules.EXAMPLES, loads=True)
register(app, "report", report.report, examples=report.EXAMPLES)
register(app, "recipes", recipes.recipes, examples=recipes.EXAMPLES, loads=True)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"polytask {polytask.__version__}")
        raise typer.Exit


@app.callback()
def _polytask(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="The version.")] = False,
) -> None:
    pass


def main() -> None:
    """The entry point `polytask`."""
    app(prog_name="polytask")
