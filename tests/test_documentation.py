"""What the README and docs/ show works: every block runs, every key, rule and link that they name exists."""

import importlib
import importlib.util
import re
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from pages import blocks, commands, walk

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES = [page for page in PAGES if page.is_file()]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
every_page = pytest.mark.parametrize("page", PAGES, ids=NAMES)

LONGEST_PAGE = 135
GENERATED_PAGES = ("benchmarks.md",)

# `<!-- keys: module:Model -->` stands before a table of a model's keys and their defaults.
KEYS = re.compile(r"^<!-- keys: ([\w.:]+) -->\n+\| key [^\n]*\n\|[-| ]+\n(.*?)(?=^[^|]|\Z)", re.MULTILINE | re.DOTALL)
ROW = re.compile(r"^\| (?P<keys>`[^|]*) \|(?P<default>[^|]*)\|", flags=re.MULTILINE)


@every_page
def test_page_does_what_it_says(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delenv("POLYTASK_DATA", raising=False)
    walk(page)


@every_page
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


@every_page
def test_commands_and_make_targets_exist(page: Path) -> None:
    """Also in the blocks that are not run."""
    from polytask.cli import app

    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    known = {"make": targets, "polytask": [each.name for each in (*app.registered_commands, *app.registered_groups)]}
    for block in blocks(page):
        for command in commands(block) if block.language == "console" else []:
            programme, *rest = command.words
            if programme in known and rest and not rest[0].startswith("-"):
                assert rest[0] in known[programme], f"{page.name}, line {block.line}: {programme} {rest[0]}"


@every_page
def test_page_is_short(page: Path) -> None:
    """What grows with the registry is not counted."""
    written = re.sub(r"(<!-- (?:generated|benchmarks):.*?-->).*?<!-- end -->", r"\1", page.read_text(), flags=re.DOTALL)
    if page.name not in GENERATED_PAGES:
        assert len(written.splitlines()) <= LONGEST_PAGE


def test_index_lists_every_page() -> None:
    index = (ROOT / "docs" / "index.md").read_text()
    pages = [page.name for page in PAGES if page.parent.name == "docs" and page.name != "index.md"]
    assert [name for name in pages if f"({name})" not in index] == []


def test_generated_parts_are_current() -> None:
    """`make docs` writes them anew."""
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    assert [page.name for page in generate.PAGES if generate.rewritten(page) != page.read_text()] == []


def key_tables() -> Iterator[tuple[str, str, str]]:
    """(page, model, rows) of every table of keys."""
    for page in PAGES:
        for model, rows in KEYS.findall(page.read_text()):
            yield page.name, model, rows


def shown_default(model: type[BaseModel], key: str) -> str:
    """A field's default as the pages write it."""
    field = model.model_fields[key]
    if field.default_factory is not None:
        return "{}"
    value: Any = field.default
    if value is PydanticUndefined:
        return "required"
    if isinstance(value, BaseModel):
        return ""  # a part with keys of its own, in a table of its own
    if isinstance(value, tuple) and any(isinstance(item, BaseModel) for item in value):
        return ""
    if isinstance(value, tuple):
        return f"[{', '.join(_written(item) for item in value)}]"
    return _written(value)


def _written(value: Any) -> str:
    """As YAML has it; numbers with four digits."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:.4g}" if isinstance(value, float) else str(value)


@pytest.mark.parametrize("page, model, rows", list(key_tables()))
def test_tables_of_keys_are_the_models(page: str, model: str, rows: str) -> None:
    """What a table calls a key is one, with that default."""
    described = model_of(model)
    for key, default in documented(rows):
        assert key in described.model_fields, f"{page}: {model} has no key {key!r}"
        expected = shown_default(described, key)
        assert not expected or default in ("", expected), f"{page}: {model}.{key} is {expected!r}, not {default!r}"


def test_every_key_of_a_recipe_is_documented() -> None:
    shown: dict[type, list[str]] = {}
    for _, model, rows in key_tables():
        for described in model_of(model).__mro__:  # the keys of a source are documented as those of `data`
            shown.setdefault(described, []).extend(key for key, _ in documented(rows))
    missing = [
        f"{model.__name__}.{key}"
        for model in recipe_models()
        for key in model.model_fields
        if key not in shown.get(model, []) and key not in ("kind", "name")
    ]
    assert missing == []


def documented(rows: str) -> list[tuple[str, str]]:
    """(key, default) of a table's rows; a row may name several keys."""
    found = []
    for row in ROW.finditer(rows):
        keys = re.findall(r"`([^`]+)`", row["keys"])
        defaults = [part.strip("` ") for part in row["default"].split(";")]
        defaults = defaults * len(keys) if len(defaults) == 1 else defaults
        found += list(zip(keys, defaults, strict=True))
    return found


def model_of(name: str) -> type[BaseModel]:
    module, _, attributes = name.partition(":")
    found: Any = importlib.import_module(module)
    for attribute in attributes.split("."):
        found = getattr(found, attribute)
    return found


def recipe_models() -> list[type[BaseModel]]:
    """The recipe's model, those in its fields, and the options of what the tables of names hold."""
    from polytask.recipes.schema import Recipe
    from polytask.sharing.names import ATTACHMENTS, ENCODERS, SHARING
    from polytask.tasks.task import Task

    options = [
        catalogue.find(name).Options for catalogue in (ENCODERS, SHARING, ATTACHMENTS) for name in catalogue.names()
    ]
    found: dict[type[BaseModel], None] = {}
    waiting: list[Any] = [Recipe, Task, *options]
    while waiting:
        annotation = waiting.pop(0)
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            if annotation in found:
                continue
            found[annotation] = None
            waiting += [field.annotation for field in annotation.model_fields.values()]
        elif isinstance(annotation, types.UnionType) or hasattr(annotation, "__args__"):
            waiting += list(annotation.__args__)
    abstract = ("SharingOptions", "EncoderOptions", "AttachmentOptions")
    return [model for model in found if model.__name__ not in abstract]
