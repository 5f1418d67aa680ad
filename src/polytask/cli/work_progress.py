"""How far a piece of work is that is counted: a bar on a terminal, a line now and then elsewhere."""

import threading
import time
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass

LINE_EVERY = 5.0  # seconds between plain lines


class WorkProgress:
    """A context manager; `update(done, total)` may be called from any thread. Everything goes to stderr.

    Args:
        description: what is done.
        shown: False says nothing.
    """

    def __init__(self, description: str, *, shown: bool = True) -> None:
        from rich.console import Console

        self._console = Console(stderr=True, highlight=False)
        self._description, self._shown = description, shown
        self._lock, self._line_at = threading.Lock(), time.monotonic()
        self._bar = None if not shown or not self._console.is_terminal else _bar(self._console)
        self._task = None if self._bar is None else self._bar.add_task(description, total=None)

    def __enter__(self) -> "WorkProgress":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        if self._bar is not None:
            self._bar.stop()

    def update(self, done: int, total: int) -> None:
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done, total=total)
            return
        with self._lock:
            if self._shown and done < total and time.monotonic() - self._line_at > LINE_EVERY:
                self._line_at = time.monotonic()
                self._console.print(f"{self._description}: {done / total:.0%}")


def _bar(console: "Console") -> "Progress":
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True)
