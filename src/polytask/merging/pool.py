"""A few threads, and torch on one thread in each of them."""

import ctypes
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any

import torch


class Threads:
    """Carries out short calls for several callers at once, each of whom gets its results in order.

    Args:
        workers: threads that compute.
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._workers = ThreadPoolExecutor(workers, "merge")

    def __enter__(self) -> "Threads":
        return self

    def __exit__(self, *error: object) -> None:
        self._workers.shutdown(cancel_futures=True)

    def execute(self, calls: Iterable[Callable[[], Any]]) -> Iterator[Any]:
        """The calls' results in order; few calls are under way or waiting at any time, so few results are held."""
        pending: deque[Future[Any]] = deque()
        for call in calls:
            pending.append(self._workers.submit(call))
            if len(pending) > 2 * self.workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()

    def each(self, calls: Sequence[tuple[int, Callable[[], Iterator[Any]]]]) -> Iterator[Any]:
        """What long calls give that use `execute`; as many at a time as there are threads, so none of these idles.

        The first error ends it: calls that have not begun are not begun.

        Args:
            calls: (size, call); a call may give several results.
        """
        given: SimpleQueue[Any] = SimpleQueue()  # of results, each alone in a tuple, and of calls that have ended

        def carry_out(call: Callable[[], Iterator[Any]]) -> None:
            for value in call():
                given.put((value,))

        with ThreadPoolExecutor(self.workers, "merge-part") as callers:
            futures = [callers.submit(carry_out, call) for _, call in calls]
            for future in futures:
                future.add_done_callback(given.put)
            try:
                for _ in futures:
                    while isinstance(found := given.get(), tuple):
                        yield found[0]
                    found.result()
            except BaseException:
                callers.shutdown(wait=False, cancel_futures=True)
                self._workers.shutdown(wait=False, cancel_futures=True)
                raise


class Budget:
    """Bytes that several threads share; whoever wants more than there are waits until nobody else has any."""

    def __init__(self, total: int) -> None:
        self._total, self._used = total, 0
        self._changed = threading.Condition()

    @contextmanager
    def of(self, wanted: int) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: self._used == 0 or self._used + wanted <= self._total)
            self._used += wanted
        try:
            yield
        finally:
            with self._changed:
                self._used -= wanted
                self._changed.notify_all()


@contextmanager
def one_thread_each() -> Iterator[None]:
    """torch computes on the thread that calls it: sums then have the same bits for any number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    _keep_freed_memory()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _keep_freed_memory() -> None:
    """glibc keeps blocks that are freed for the next ones, where it can be told so; a fresh page costs more than a sum.

    The first is the highest threshold that glibc's own adjustment ends at.
    """
    tell = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if tell is not None:
        tell(_MMAP_THRESHOLD, 32 << 20)
        tell(_TRIM_THRESHOLD, 128 << 20)


_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of malloc.h


def processors() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
