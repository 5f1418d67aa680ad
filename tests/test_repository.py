"""Rules of the house that a program can check: sizes, names, tables of names, pins, and how light the imports are."""

import ast
import importlib
import re
import statistics
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from polytask.core.names import METHODS, RULES, TRANSFORMS

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted((ROOT / "src").rglob("*.py"))

LONGEST_FILE = 400
LONGEST_BODY = 60
SHAPELESS = {"utils", "util", "helpers", "misc", "common"}
TARGET = re.compile(r"polytask(\.\w+)+:\w+")


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function without its signature and docstring."""
    body = function.body[1:] if ast.get_docstring(function) and len(function.body) > 1 else function.body
    return (function.end_lineno or 0) - body[0].lineno + 1


def targets() -> list[str]:
    """Every "module:attribute" written in the package: catalogues and what is loaded on use."""
    found = {
        node.value
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and TARGET.fullmatch(node.value)
    }
    return sorted(found)


def test_no_file_is_too_long() -> None:
    lengths = {relative(path): len(path.read_text().splitlines()) for path in SOURCES}
    assert not {path: lines for path, lines in lengths.items() if lines > LONGEST_FILE}


def test_no_file_is_named_for_nothing() -> None:
    assert not [relative(path) for path in SOURCES if path.stem in SHAPELESS]


def test_no_function_is_too_long() -> None:
    assert not {
        f"{relative(path)}:{node.lineno} {node.name}": body_lines(node)
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and body_lines(node) > LONGEST_BODY
    }


def test_every_room_is_a_package_with_a_docstring() -> None:
    for folder in sorted({path.parent for path in SOURCES}):
        if folder == ROOT / "src":
            continue
        init = folder / "__init__.py"
        assert init.is_file(), f"{relative(folder)} has no __init__.py"
        assert ast.get_docstring(ast.parse(init.read_text())), f"{relative(init)} does not say what the room is for"


@pytest.mark.parametrize("target", targets())
def test_every_name_in_a_table_resolves(target: str) -> None:
    module, _, attribute = target.partition(":")
    assert getattr(importlib.import_module(module), attribute) is not None


@pytest.mark.parametrize("decorator, table", [("rule", RULES), ("transform", TRANSFORMS), ("method", METHODS)])
def test_every_rule_file_is_in_the_table(decorator: str, table: dict[str, str]) -> None:
    """A file that declares a rule without its line in core/names.py would never be found."""
    declared = {}
    rooms = [ROOT / "src/polytask" / room for room in ("balancing", "merging")]
    for path in sorted(path for room in rooms for path in room.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            for call in node.decorator_list if isinstance(node, ast.FunctionDef) else []:
                if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == decorator:
                    module = ".".join(path.relative_to(ROOT / "src").with_suffix("").parts)
                    declared[ast.literal_eval(call.args[0])] = module
            made = node.value if decorator == "method" and isinstance(node, ast.Assign) else None
            if isinstance(made, ast.Call) and isinstance(made.func, ast.Name) and made.func.id == "composed":
                declared[path.stem] = ".".join(path.relative_to(ROOT / "src").with_suffix("").parts)
    assert declared == {name: target.partition(":")[0] for name, target in table.items()}


def test_what_ci_installs_is_pinned() -> None:
    pins = dict(
        line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")
    )
    assert pins["torch"] == "2.13.0"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [
        *project["dependencies"],
        *(entry for extra in ("text", "chem", "test", "dev") for entry in extras[extra]),
    ]
    names = {re.split(r"[\[<>=!~ ;]", entry)[0] for entry in wanted} - {"polytask"}
    pinned = {canonical(name) for name in pins}
    assert not sorted(name for name in names if canonical(name) not in pinned)


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def run_python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


def test_import_polytask_is_light() -> None:
    heavy = ("torch", "numpy", "pydantic", "polars", "sklearn", "plotly", "transformers", "rdkit", "rich", "typer")
    loaded = run_python(f"import polytask, sys; print([name for name in {heavy} if name in sys.modules])")
    assert loaded.strip() == "[]"


def test_everything_exported_is_there() -> None:
    run_python("import polytask; [getattr(polytask, name) for name in polytask.__all__]")


@pytest.mark.slow
def test_import_polytask_takes_less_than_300_ms_beyond_torch() -> None:
    code = "import torch, time; start = time.process_time(); import polytask; print(time.process_time() - start)"
    assert statistics.median(float(run_python(code)) for _ in range(5)) < 0.3


@pytest.mark.slow
def test_help_takes_less_than_500_ms() -> None:
    # Processor time of the child: a process that waits for nothing takes no longer, and a busy machine does not count.
    code = (
        "import resource, subprocess, sys;"
        "subprocess.run([sys.executable, '-m', 'polytask', '--help'], check=True, stdout=subprocess.DEVNULL);"
        "used = resource.getrusage(resource.RUSAGE_CHILDREN); print(used.ru_utime + used.ru_stime)"
    )
    assert statistics.median(float(run_python(code)) for _ in range(7)) < 0.5
