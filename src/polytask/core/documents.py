"""YAML as recipes and plans are written in it, and changes to what was read: `train.optimizer.lr=0.01`."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from yaml.constructor import ConstructorError

from polytask.core.errors import BadValue, DataError


def read_text(path: Path, what: str) -> str:
    """The file's text; DataError naming the line where it is not UTF-8. `what` the file is to be: "recipe"."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise DataError(f"{path}, line {line}: no text in UTF-8, so no {what}; save it as UTF-8") from None


def parsed_yaml(text: str, where: str) -> Any:
    """The value; DataError naming the line where it is not YAML, or where a key stands twice."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{where}, line {mark.line + 1}" if mark is not None else where
        problem = str(getattr(error, "problem", None) or error)
        if r"'\t'" in problem:
            problem = "a tab; indent with spaces"
        raise DataError(f"{place}: not valid YAML ({problem})") from None


def parsed_settings(
    settings: Mapping[str, Any] | Sequence[str], example: str = "train.optimizer.lr=0.01"
) -> dict[str, Any]:
    """{"a.b": value} from `a.b=value`; the value is read as YAML."""
    if isinstance(settings, Mapping):
        return dict(settings)
    parsed: dict[str, Any] = {}
    for setting in settings:
        path, equals, text = setting.partition("=")
        if not equals or not path.strip():
            raise BadValue("a setting", setting, f"path.to.key=value, such as {example}")
        parsed[path.strip()] = parsed_yaml(text, f"--set {path}")
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


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader; it reads 1e-3 and -.5 as numbers, as YAML 1.2 does, and refuses a key that stands twice."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, str | int) and key in seen:
                raise ConstructorError(None, None, f"key {key!r} stands twice", key_node.start_mark)
            if isinstance(key, str | int):
                seen.add(key)
        return super().construct_mapping(node, deep)


_NUMBER = re.compile(r"^[-+]?(?:[0-9][0-9_]*(?:\.[0-9_]*)?[eE][-+]?[0-9]+|\.[0-9]+(?:[eE][-+]?[0-9]+)?)$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _NUMBER, list("-+.0123456789"))
