"""A documentation page as something to run: its fenced blocks, from top to bottom, in one empty folder.

- `python` is executed, all blocks of a page in one namespace; a `text` block right after it is what it prints.
- `diff` is Python, executed without its `+` lines and then without its `-` lines.
- `yaml` is checked as a recipe or as the plan of a merge, or as a part of one.
- Any block with the first line `# name.ext` is saved under that name; Python is then not run by itself.
- `console`: each `polytask` command runs through the entry point. Where lines begin with `$ `, the others are what it
  prints; `...` stands for anything, and numbers are not compared. A command that prints `error: ` ends with status 2,
  any other with 0.
- `<!-- not run: why -->` before a block leaves it out. `<!-- setup ... -->` is Python that prepares the folder.
"""

import contextlib
import doctest
import io
import os
import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from polytask.core import rules
from polytask.merging.plan import MergePlan
from polytask.merging.plan_file import read_plan
from polytask.recipes.reading import read_recipe
from polytask.recipes.schema import Recipe

BLOCK = re.compile(
    r"(?:^<!-- not run: (?P<reason>[^\n]+) -->\n+)?^```(?P<language>\w*)\n(?P<text>.*?)^```$"
    r"|^<!-- setup\n(?P<setup>.*?)^-->$",
    flags=re.MULTILINE | re.DOTALL,
)
FILE_NAME = re.compile(r"# ([\w.-]+\.\w+)\n")
MACHINE = re.compile(r"[−+±-]?\d+(?:[.,]\d+)*|[▲▼≈·]|─+")
# What a part of a recipe is put into, so that it can be checked like a whole one.
REST = {"version": 1, "tasks": {"income": "binary"}}
REST_OF_PLAN = {"version": 1, "base": "base", "tasks": {"math": "math", "code": "code"}, "rule": "ties"}
PLAN_KEYS = set(MergePlan.model_fields) - set(Recipe.model_fields)
OTHER_PROGRAMMES = ("make", "pip", "cd", "git", "ls", "cat", "head", "source")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language ("setup" for a hidden one), text and line, and why it is not run, if it is not."""

    language: str
    text: str
    line: int
    reason: str | None = None

    @property
    def file_name(self) -> str | None:
        """The name that the first line gives, where the block is a file."""
        found = FILE_NAME.match(self.text)
        return found.group(1) if found else None


@dataclass(frozen=True)
class Command:
    """A command and the lines that the page shows it printing (None: the page shows none)."""

    words: list[str]
    printed: str | None


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = []
    for match in BLOCK.finditer(text):
        line = text.count("\n", 0, match.start()) + 1
        if match["setup"] is not None:
            found.append(Block("setup", match["setup"], line))
        else:
            found.append(Block(match["language"], match["text"], line, match["reason"]))
    return found


def commands(block: Block) -> list[Command]:
    """The commands of a console block."""
    lines = block.text.replace("\\\n", " ").splitlines()
    if not any(line.startswith("$ ") for line in lines):
        return [Command(shlex.split(line, comments=True), None) for line in lines if line.strip()]
    found: list[Command] = []
    printed: list[str] = []
    for line in reversed(lines):
        if line.startswith("$ "):
            found.insert(0, Command(shlex.split(line[2:], comments=True), "\n".join(printed) if printed else None))
            printed = []
        else:
            printed.insert(0, line)
    return found


def walk(page: Path) -> None:
    """Runs the page in the present folder; AssertionError with the line where it does not do what it says."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    before: tuple[Block, str] | None = None  # a Python block and what it printed
    for block in blocks(page):
        place = f"{page.name}, line {block.line}"
        after, before = before, None
        if block.reason is not None:
            continue
        if block.language in ("python", "setup") and (block.language == "setup" or block.file_name is None):
            with captured() as (out, _):
                exec(compile(block.text, place, "exec"), namespace)
            before = (block, out.getvalue())
        elif block.language == "diff":
            for left_out in "+-":
                kept = [line[1:] for line in block.text.splitlines() if not line.startswith(left_out)]
                exec(compile("\n".join(kept), place, "exec"), namespace)
        elif block.language == "text" and after is not None:
            assert_prints(block.text, after[1], place)
        elif block.language == "yaml":
            check_recipe(block)
        elif block.language == "console":
            for command in commands(block):
                run(command, place)
        if block.file_name is not None:
            Path(block.file_name).write_text(block.text, encoding="utf-8")


def check_recipe(block: Block) -> Recipe | MergePlan:
    """A whole recipe or plan of a merge (or mergekit's file), or some of its parts, is valid."""
    values = yaml.safe_load(block.text)
    if set(values) & (PLAN_KEYS | {"merge_method"}):
        whole = "merge_method" in values or block.file_name is not None
        return read_plan(values if whole else {**REST_OF_PLAN, **values}).plan
    if block.file_name is None:
        values = {**REST, **values}
    recipe = read_recipe(values).recipe
    assert recipe.task_list
    return recipe


def run(command: Command, place: str) -> None:
    """A `polytask` command in this process, through the function that the command line starts."""
    from polytask.cli import main

    if command.words[0] != "polytask":
        assert command.words[0] in OTHER_PROGRAMMES, f"{place}: mark what is not run, with the reason: {command.words}"
        return
    arguments, status = sys.argv, 0
    sys.argv = command.words
    known, rules._catalogue._added = rules._catalogue._added, {}  # a process of its own would know no loaded rule
    try:
        with captured() as (out, err):
            main()
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        sys.argv = arguments
        rules._catalogue._added = known
    printed = out.getvalue() + err.getvalue()  # progress goes to stderr too; the error is its last line
    expected = 2 if command.printed is not None and "error: " in command.printed else 0
    assert status == expected, f"{place}: {shlex.join(command.words)} ended with status {status}:\n{printed}"
    if command.printed is not None:
        assert_prints(command.printed, err.getvalue().splitlines()[-1] if expected else out.getvalue(), place)


def assert_prints(shown: str, printed: str, place: str) -> None:
    """The page's lines are the printed ones, up to white space and `...`.

    Numbers, verdicts and lines of a table are another machine's; in an error every character counts.
    """
    compared = [shown, printed] if "error: " in shown else [MACHINE.sub("#", text) for text in (shown, printed)]
    wanted, found = (text.strip() + "\n" for text in compared)
    same = doctest.OutputChecker().check_output(wanted, found, doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert same, f"{place} shows\n{shown}\nand this is printed:\n{printed}"


@contextlib.contextmanager
def captured() -> Iterator[tuple[io.StringIO, io.StringIO]]:
    out, err = io.StringIO(), io.StringIO()
    columns = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "100"
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            yield out, err
    finally:
        os.environ.pop("COLUMNS")
        if columns is not None:
            os.environ["COLUMNS"] = columns
