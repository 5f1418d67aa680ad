"""A table of names, each pointing to where its object is defined; the module is imported when the name is looked up.

Rules, encoders and sharing architectures are found this way: a static table keeps `import polytask` light, lets a room
use another room's components by name without importing that room, and makes the order of every listing the table's.
"""

import functools
import importlib
import inspect
from importlib.metadata import entry_points
from typing import Any

from polytask.core.errors import BadValue, DataError, UnknownName

GROUP = "polytask.rules"


@functools.cache
def load_entry_points() -> None:
    """Imports what other installed packages add under the entry point group `polytask.rules`, once.

    Their modules declare rules, encoders or sources as a file given to `--load` does.
    """
    for entry in entry_points(group=GROUP):
        try:
            entry.load()
        except Exception as error:
            package = entry.dist.name if entry.dist else "a package"
            message = f"entry point {entry.name!r} of {package}: {type(error).__name__}: {error}"
            raise DataError(f"{message} (group {GROUP}); mend or uninstall {package}") from error


def documentation(function: Any) -> str:
    """The docstring of the file in which a function or class is defined, else its own."""
    return inspect.getdoc(inspect.getmodule(function)) or inspect.getdoc(function) or ""


def summary(function: Any) -> str:
    """The first line of `documentation`."""
    return documentation(function).split("\n", 1)[0]


class Catalogue:
    """Names -> objects.

    Args:
        what: the kind of thing, for messages ("rule").
        targets: name -> "module:attribute".
    """

    def __init__(self, what: str, targets: dict[str, str]) -> None:
        self.what = what
        self._targets = dict(targets)
        self._added: dict[str, Any] = {}

    def names(self) -> list[str]:
        return [*self._targets, *self._added]

    def __contains__(self, name: object) -> bool:
        return name in self._targets or name in self._added

    def find(self, name: str) -> Any:
        """The object called `name`; UnknownName with the nearest match if there is none."""
        if name not in self:
            load_entry_points()
        if name in self._added:
            return self._added[name]
        if name not in self._targets:
            raise UnknownName(self.what, name, self.names())
        module, _, attribute = self._targets[name].partition(":")
        return getattr(importlib.import_module(module), attribute)

    def add(self, name: str, thing: Any) -> None:
        """Adds one from outside (a plugin, `--load`); a name can be taken once."""
        if name in self:
            raise BadValue(f"the name of a new {self.what}", name, "a name that is not taken")
        self._added[name] = thing

    def declare(self, name: str, thing: Any, module: str) -> None:
        """Called where a thing is defined: adds it, unless the table knows that it is defined in this module."""
        if self._targets.get(name, "").partition(":")[0] != module:
            self.add(name, thing)

    def target(self, name: str) -> str:
        """Where a name's object is defined, "module:attribute", without importing it."""
        if name in self._targets:
            return self._targets[name]
        added = self.find(name)
        return f"{getattr(added, '__module__', type(added).__module__)}:{name}"
