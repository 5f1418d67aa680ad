"""`--load FILE.py`: code from outside, named on the command line and never in a recipe."""

import importlib.util
import sys
import traceback
from pathlib import Path

from polytask.core.errors import DataError, PolytaskError


def load_file(file: Path) -> None:
    """Runs a Python file; the rules, encoders and sources that it declares are then found by their names."""
    if not file.is_file():
        raise DataError(f"--load {file}: no such file")
    name = f"polytask_loaded_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise DataError(f"--load {file}: not a Python file; allowed: FILE.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # annotations and pickles look for it there
    try:
        spec.loader.exec_module(module)
    except PolytaskError as error:
        raise DataError(f"--load {file}: {error}") from error
    except Exception as error:  # the file is the user's and may fail in any way
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if Path(frame.filename).resolve() == file.resolve()]
        line = lines[-1] if lines else getattr(error, "lineno", None)
        place = f", line {line}" if line else ""
        raise DataError(f"--load {file}{place}: {type(error).__name__}: {error}") from error
