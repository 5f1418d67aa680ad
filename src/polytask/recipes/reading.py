"""From a file, a shipped recipe's name or a mapping to a checked recipe."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from polytask.core.documents import changed, parsed_settings, parsed_yaml, read_text
from polytask.core.errors import BadValue, DataError, UnknownName, nearest_beside
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


def parsed_variations(variations: Sequence[str]) -> dict[str, list[Any]]:
    """{"a.b": [values]} from `a.b=x,y`; the values are read as YAML, so `[1, 2],[3]` are two lists."""
    parsed: dict[str, list[Any]] = {}
    for variation in variations:
        path, equals, text = variation.partition("=")
        if not equals or not path.strip() or not text.strip():
            raise BadValue("a variation", variation, "path.to.key=value,value, such as train.batch_size=64,256")
        parsed[path.strip()] = parsed_yaml(f"[{text}]", f"--vary {path}")
    return parsed


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
        return _mapping(read_text(path, "recipe"), str(path)), path.resolve().parent
    if isinstance(recipe, str) and path.suffix == "" and path.name == recipe:
        return _mapping(shipped_text(recipe), recipe), None
    if path.is_dir():
        raise DataError(f"{path}: is a folder; allowed: a recipe file, or the name of a shipped recipe")
    name = path.name.removesuffix(".yaml")
    hint = f"; a recipe of this name is shipped: {name}" if name in shipped_names() else ""
    raise DataError(f"{path}: no such recipe file{nearest_beside(path)}{hint}")


def _mapping(text: str, where: str) -> dict[str, Any]:
    values = parsed_yaml(text, where)
    if values is None:
        raise DataError(f"{where}: the recipe is empty; `polytask init` drafts one from a table")
    if not isinstance(values, dict):
        raise BadValue("a recipe", values, "a mapping (version, data, tasks, model, train)", where)
    return values
