"""From a file, a shipped recipe's name or a mapping to a checked recipe."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from yaml.constructor import ConstructorError

from polytask.core.errors import BadValue, DataError, UnknownName
from polytask.core.validation import validated
from polytask.recipes.schema import Recipe


@dataclass(frozen=True)
class Read:
    """A recipe and where it came from: its folder, for paths beside it (None when it was not a file of the user's)."""

    recipe: Recipe
    values: dict[str, Any]
    beside: Path | None


def shipped_names() -> list[str]:
    """The recipes inside the package."""
    folder = resources.files("polytask.recipes") / "shipped"
    return sorted(file.name.removesuffix(".yaml") for file in folder.iterdir() if file.name.endswith(".yaml"))


def shipped_text(name: str) -> str:
    """A shipped recipe as it was written."""
    if name not in shipped_names():
        raise UnknownName("shipped recipe", name, shipped_names())
    return (resources.files("polytask.recipes") / "shipped" / f"{name}.yaml").read_text(encoding="utf-8")


def read_recipe(recipe: str | Path | Mapping[str, Any], settings: Mapping[str, Any] | Sequence[str] = ()) -> Read:
    """A checked recipe.

    Args:
        recipe: a path, the name of a shipped recipe, or the content as a mapping.
        settings: changes: {"train.optimizer.lr": 0.01} or ["train.optimizer.lr=0.01"].
    """
    values, beside = _values(recipe)
    for path, value in parsed_settings(settings).items():
        values = changed(values, path, value)
    return Read(validated(Recipe, values, "recipe", _as_written(values)), values, beside)


def parsed_settings(settings: Mapping[str, Any] | Sequence[str]) -> dict[str, Any]:
    """{"a.b": value} from `a.b=value`; the value is read as YAML."""
    if isinstance(settings, Mapping):
        return dict(settings)
    parsed: dict[str, Any] = {}
    for setting in settings:
        path, equals, text = setting.partition("=")
        if not equals or not path.strip():
            raise BadValue("a setting", setting, "path.to.key=value, such as train.optimizer.lr=0.01")
        parsed[path.strip()] = _parsed(text, f"--set {path}")
    return parsed


def parsed_variations(variations: Sequence[str]) -> dict[str, list[Any]]:
    """{"a.b": [values]} from `a.b=x,y`; the values are read as YAML, so `[1, 2],[3]` are two lists."""
    parsed: dict[str, list[Any]] = {}
    for variation in variations:
        path, equals, text = variation.partition("=")
        if not equals or not path.strip() or not text.strip():
            raise BadValue("a variation", variation, "path.to.key=value,value, such as train.batch_size=64,256")
        parsed[path.strip()] = _parsed(f"[{text}]", f"--vary {path}")
    return parsed


def changed(values: Mapping[str, Any], path: str, value: Any) -> dict[str, Any]:
    """The mapping with one entry replaced; parts that are missing are made, `stages.0` counts from 0."""
    key, _, rest = path.partition(".")
    if not rest:
        return {**values, key: value}
    inner = values.get(key)
    if isinstance(inner, list):
        position, _, below = rest.partition(".")
        if not position.isdigit() or int(position) >= len(inner):
            raise BadValue(f"the place in {key!r}", position, f"0 to {len(inner) - 1}", f"setting {path!r}")
        copy = list(inner)
        copy[int(position)] = changed(inner[int(position)], below, value) if below else value
        return {**values, key: copy}
    if isinstance(inner, str):
        inner = {"kind": inner}
    if inner is not None and not isinstance(inner, Mapping):
        raise BadValue(f"{key!r}", inner, "a mapping, as the setting goes inside it", f"setting {path!r}")
    return {**values, key: changed(inner or {}, rest, value)}


def _as_written(values: Mapping[str, Any]) -> dict[str, str]:
    """How places are called where `train:` stands for the stages (and for what holds for the whole run)."""
    if "train" not in values:
        return {}
    return {"recipe.stages.0": "recipe.train", **({} if "run" in values else {"recipe.run": "recipe.train"})}


def _values(recipe: str | Path | Mapping[str, Any]) -> tuple[dict[str, Any], Path | None]:
    if isinstance(recipe, Mapping):
        return dict(recipe), None
    path = Path(recipe)
    if path.is_file():
        return _mapping(_text(path), str(path)), path.resolve().parent
    if isinstance(recipe, str) and path.suffix == "" and path.name == recipe:
        return _mapping(shipped_text(recipe), recipe), None
    if path.is_dir():
        raise DataError(f"{path}: is a folder; allowed: a recipe file, or the name of a shipped recipe")
    name = path.name.removesuffix(".yaml")
    hint = f"; a recipe of this name is shipped: {name}" if name in shipped_names() else ""
    raise DataError(f"{path}: no such recipe file{hint}")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise DataError(f"{path}, line {line}: no text in UTF-8, so no recipe; save it as UTF-8") from None


def _mapping(text: str, where: str) -> dict[str, Any]:
    values = _parsed(text, where)
    if values is None:
        raise DataError(f"{where}: the recipe is empty; `polytask init` drafts one from a table")
    if not isinstance(values, dict):
        raise BadValue("a recipe", values, "a mapping (version, data, tasks, model, train)", where)
    return values


def _parsed(text: str, where: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{where}, line {mark.line + 1}" if mark is not None else where
        problem = str(getattr(error, "problem", None) or error)
        if r"'\t'" in problem:
            problem = "a tab; indent with spaces"
        raise DataError(f"{place}: not valid YAML ({problem})") from None


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, reading 1e-3 as the number that it is in YAML 1.2, and refusing a key that stands twice."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, str | int) and key in seen:
                raise ConstructorError(None, None, f"key {key!r} stands twice", key_node.start_mark)
            if isinstance(key, str | int):
                seen.add(key)
        return super().construct_mapping(node, deep)


_EXPONENT = re.compile(r"^[-+]?[0-9][0-9_]*(?:\.[0-9_]*)?[eE][-+]?[0-9]+$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+0123456789"))
