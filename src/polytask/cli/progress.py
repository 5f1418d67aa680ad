"""How far a run or a comparison is: a bar on a terminal, a line now and then elsewhere. Fed by the event stream."""

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from polytask.cli.command import is_first_process

LINE_EVERY = 5.0  # seconds between plain lines
MOST_TASKS = 4  # scores shown in one line


class Progress:
    """A listener of `fit` and `compare`; a context manager while the bar is on the screen.

    Everything goes to stderr, so that stdout holds results only.
    """

    def __init__(self, description: str) -> None:
        from rich.console import Console

        self.console = Console(stderr=True, highlight=False)
        self.name, self.index, self.of = description, 1, 1
        self.reused = 0
        self._is_study = False
        self._units = _Units()
        self._line_at = 0.0
        self._said: dict[str, None] = {}
        terminal = self.console.is_terminal and is_first_process()
        self._bar, self._shown = _bar(self.console, description) if terminal else (None, None)

    def __enter__(self) -> "Progress":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        if self._is_study:
            self._end_run()
        if self._bar is not None:
            if kind is None:
                self._bar.update(self._shown, completed=1.0, left="", name="done")
            self._bar.stop()

    def __call__(self, event: Mapping[str, Any]) -> None:
        kind = event["event"]
        if kind == "run":
            self._end_run()
            self._is_study = True
            self.index, self.of, self.name = event["index"], event["of"], event["name"]
            self._units.next_run()
        elif kind == "message":
            self._say_once(f"note: {event['text']}")
        elif kind in ("start", "step", "evaluate"):
            self._units.see(event)
        self._show(event)

    @property
    def left(self) -> str:
        """The time left in words, empty while there is nothing to guess from."""
        from polytask.evaluation.formatting import duration

        seconds = self._units.seconds_left(self.of - self.index)
        return "" if seconds is None else f"{duration(max(1, round(seconds))).replace('.0 s', ' s')} left"

    def _end_run(self) -> None:
        if self._is_study and not self._units.run_seen:
            self.reused += 1

    def _show(self, event: Mapping[str, Any]) -> None:
        if self._bar is not None:
            done = (self.index - 1 + self._units.fraction) / self.of
            count = f"{self.index} of {self.of}" if self._is_study else ""
            self._bar.update(self._shown, completed=done, left=self.left, name=self.name, count=count)
        elif event["event"] == "evaluate" and not self._is_study:
            self._line(f"step {event['step']}: {_scores(event)}")
        elif event["event"] in ("step", "evaluate") and time.monotonic() - self._line_at > LINE_EVERY:
            percent = f"{self._units.fraction:.0%}"
            if self._is_study:
                self._line(f"run {self.index} of {self.of}: {self.name}, {percent}")
            else:
                self._line(f"step {event['step']}: {percent}")

    def _line(self, text: str) -> None:
        self._line_at = time.monotonic()
        left = self.left
        self.console.print(f"{text}, {left}" if left else text, soft_wrap=True, markup=False)

    def _say_once(self, text: str) -> None:
        """Every run of a comparison has the same remarks on the data."""
        if text not in self._said:
            self._said[text] = None
            self.console.print(text, style="yellow", soft_wrap=True, markup=False)


class _Units:
    """Counts in runs: how many were trained here (a fraction of the present one included), and how long that took."""

    def __init__(self) -> None:
        self.fraction = 0.0
        self.run_seen = False
        self._stages: list[str] = []
        self._steps = 0  # of the present stage
        self._earlier = 0.0  # runs trained before this one
        self._first: float | None = None  # the fraction that a resumed run began with
        self._started: float | None = None

    def next_run(self) -> None:
        if self.run_seen:
            self._earlier += 1.0 - (self._first or 0.0)
        self.fraction, self.run_seen, self._first, self._stages, self._steps = 0.0, False, None, [], 0

    def see(self, event: Mapping[str, Any]) -> None:
        self.run_seen = True
        if self._started is None:
            self._started = time.monotonic()
        if event["event"] == "start":
            self._stages, self._first = list(event["stages"]), 0.0
        if event["event"] == "step":
            self._steps = event["of"]
        if event["event"] != "start" and self._steps:
            stages = self._stages or [event["stage"]]
            self.fraction = (stages.index(event["stage"]) + event["stage_step"] / self._steps) / len(stages)
            if self._first is None:
                self._first = self.fraction

    def seconds_left(self, runs_after: int) -> float | None:
        """A guess from the pace so far."""
        done = self._earlier + self.fraction - (self._first or 0.0)
        if self._started is None or done < 0.02 or (self.fraction == 1 and not runs_after):
            return None
        return (time.monotonic() - self._started) / done * (runs_after + 1.0 - self.fraction)


def _scores(event: Mapping[str, Any]) -> str:
    """`left accuracy 0.912, right accuracy 0.871, score 0.9`, of the first tasks."""
    shown = []
    for task, metrics in list(event["metrics"].items())[:MOST_TASKS]:
        name, value = next(iter(metrics.items()))
        shown.append(f"{task} {name} {'undefined' if value is None else format(value, '.4g')}")
    hidden = len(event["metrics"]) - len(shown)
    more = [f"{hidden} more tasks"] if hidden > 0 else []
    score = "undefined" if event["score"] is None else format(event["score"], ".4g")
    return ", ".join([*shown, *more, f"score {score}"])


def _bar(console: Any, description: str) -> tuple[Any, Any]:
    from rich import progress
    from rich.table import Column

    bar = progress.Progress(
        progress.TextColumn("{task.fields[count]}"),
        progress.BarColumn(bar_width=24),
        progress.TextColumn("{task.percentage:>3.0f} %"),
        progress.TextColumn("{task.fields[left]}", table_column=Column(min_width=8, no_wrap=True)),
        progress.TextColumn(
            "{task.fields[name]}", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis"), markup=False
        ),
        console=console,
        expand=True,
    )
    return bar, bar.add_task("", total=1.0, name=description, count="", left="")
