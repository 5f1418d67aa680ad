"""Every error that a user can cause: one line saying what, where, found, allowed and the nearest match.

The command line prints such an error as it is and ends with exit status 2; a programme catches `PolytaskError`.
"""

import difflib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any


class PolytaskError(Exception):
    """The user can mend this. Subclasses also derive from the builtin that a Python programmer would catch."""

    def __str__(self) -> str:  # KeyError would print the repr of its argument
        return str(self.args[0]) if self.args else ""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
        """So that another process can raise it here: from its message, not from what the message was made of."""
        return _again, (type(self), *self.args), self.__dict__


def _again(kind: type[PolytaskError], *args: object) -> PolytaskError:
    error = kind.__new__(kind, *args)
    error.args = args
    return error


class UnknownName(PolytaskError, KeyError):
    """A name that is in no table, column list or recipe: the allowed ones and the nearest match follow."""

    def __init__(self, what: str, found: object, allowed: Iterable[object], where: str | None = None) -> None:
        names = [str(name) for name in allowed]
        super().__init__(
            f"{_place(where)}no {what} {str(found)!r}{nearest(str(found), names)}; allowed: {_listed(names)}"
        )


class BadValue(PolytaskError, ValueError):
    """A value outside what is allowed."""

    def __init__(self, what: str, found: object, allowed: str, where: str | None = None) -> None:
        super().__init__(f"{_place(where)}{what} is {found!r}; allowed: {allowed}")


class Inconsistent(PolytaskError, ValueError):
    """Values that do not go together."""


class MissingInput(PolytaskError, ValueError):
    """Something that a rule, an encoder or a command needs was not given."""


class DataError(PolytaskError, ValueError):
    """A table, file or label that cannot be used as it is."""


class CheckpointError(PolytaskError, ValueError):
    """A checkpoint or run directory that is damaged, incomplete or another recipe's."""


class NotFinite(PolytaskError, ArithmeticError):
    """A loss, gradient or parameter that is NaN or infinite."""


class GraphError(PolytaskError, RuntimeError):
    """An autograd graph that does not fit its tensors any more."""


class MissingExtra(PolytaskError, ImportError):
    """An optional package is not installed."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs the package {package!r}: pip install 'polytask[{extra}]'")


def nearest(found: str, allowed: Iterable[str]) -> str:
    """` (did you mean 'x'?)`, or nothing when no allowed name is near.

    >>> nearest("pcgrd", ["mgda", "pcgrad"])
    " (did you mean 'pcgrad'?)"
    """
    by_folded = {name.casefold(): name for name in allowed}
    close = difflib.get_close_matches(found.casefold(), list(by_folded), n=1, cutoff=0.6)
    return f" (did you mean {by_folded[close[0]]!r}?)" if close else ""


def nearest_beside(path: Path, *, folders_only: bool = False) -> str:
    """As `nearest`, among what lies where a missing file or folder should."""
    beside = sorted(path.parent.iterdir()) if path.parent.is_dir() else []
    return nearest(path.name, [each.name for each in beside if each.is_dir() or not folders_only])


def _place(where: str | None) -> str:
    return f"{where}: " if where else ""


def _listed(names: list[str], most: int = 30) -> str:
    shown = ", ".join(names[:most]) if names else "none"
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
