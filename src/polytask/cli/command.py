"""What every command has in common: an example in its help, --debug, and one clear line for what the user can mend."""

import functools
import inspect
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from polytask.core.errors import PolytaskError

Debug = Annotated[bool, typer.Option("--debug", help="Show where in the code an error came from.")]
Load = Annotated[
    list[Path] | None,
    typer.Option("--load", metavar="FILE.py", help="Import a file that adds rules, encoders or sources; repeatable."),
]

BAD_INPUT = 2
INTERRUPTED = 130


def register(
    app: typer.Typer, name: str, function: Callable[..., None], *, examples: tuple[str, ...], loads: bool = False
) -> None:
    """Adds a command.

    Args:
        app: gets it.
        name: of the command.
        function: its parameters are the options; the docstring is the help.
        examples: command lines for the help.
        loads: whether it takes --load.
    """
    shown = "\n".join(f"  {example}" for example in examples)
    heading = "Example:" if len(examples) == 1 else "Examples:"
    app.command(name, epilog=f"\b\n{heading}\n{shown}")(_guarded(function, loads))


def _guarded(function: Callable[..., None], loads: bool) -> Callable[..., None]:
    """The function with --debug (and --load), whose errors end the process as they should."""
    added = {"load": Load, "debug": Debug} if loads else {"debug": Debug}

    @functools.wraps(function)
    def guarded(*, debug: bool = False, load: list[Path] | None = None, **options: Any) -> None:
        try:
            if load:
                from polytask.cli.loading import load_file

                for file in load:
                    load_file(file)
            function(**options)
        except PolytaskError as error:
            if debug:
                raise
            fail(str(error))
        except KeyboardInterrupt:
            if debug:
                raise
            fail(_interrupted(options), INTERRUPTED, "interrupted")
        except BrokenPipeError:  # whoever read the output has enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(1) from None
        except OSError as error:
            if debug or error.errno is None:
                raise
            fail(f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror))

    signature = inspect.signature(function)
    parameters = [
        inspect.Parameter(
            key, inspect.Parameter.KEYWORD_ONLY, default=None if key == "load" else False, annotation=annotation
        )
        for key, annotation in added.items()
    ]
    whole = signature.replace(parameters=[*signature.parameters.values(), *parameters])
    vars(guarded).update(__signature__=whole)  # what typer reads
    guarded.__annotations__ = {**function.__annotations__, **added}
    return guarded


def fail(message: str, status: int = BAD_INPUT, word: str = "error") -> None:
    """One line on stderr, and the end. Of several processes each says which it is."""
    rank = int(os.environ.get("RANK", "0"))
    place = f" (process {rank})" if rank else ""
    sys.stderr.write(f"{word}{place}: {' '.join(message.split())}\n")
    raise typer.Exit(status)


def is_first_process() -> bool:
    """Whether this process prints: under torchrun only the first does."""
    return os.environ.get("RANK", "0") == "0"


def _interrupted(options: dict[str, Any]) -> str:
    out = options.get("out")
    if "resume" in options:
        if out is None or not out.exists():
            return "nothing was written"
        origin = f"the last checkpoint in {out}" if (out / "last").exists() else "the beginning: no checkpoint is there"
        return f"continue with the same command and --resume (from {origin})"
    if "seeds" in options or "fresh" in options:
        return "the same command continues where this one stopped: finished runs are kept"
    return "nothing was written"
