"""Processes that carry out calls: forks of this one, which share its files and mappings and none of Python's locks.

Threads hand Python's lock over at every operation, dozens of times a block, and wait for one another. A fork starts in
milliseconds, knows all that was made before it, and gives its results back through a pipe.
"""

import ctypes
import gc
import os
import pickle
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import Any, NoReturn

from polytask.core.errors import CheckpointError, PolytaskError

Work = Callable[[int, "Channel"], None]

AVAILABLE = sys.platform == "linux"


class Forks:
    """Carries out calls in processes that live as long as a list of them.

    Args:
        workers: how many processes.
        begin: called in each process when it begins, with its number.
        heard: called in this process whenever another has given a result.
    """

    def __init__(self, workers: int, begin: Callable[[int], None], heard: Callable[[], None]) -> None:
        self.workers = workers
        self._begin, self._heard = begin, heard
        self._inside = False

    def __enter__(self) -> "Forks":
        return self

    def __exit__(self, *error: object) -> None:
        """Nothing is left: processes end with the calls that they were made for."""

    def execute(self, calls: Iterable[Callable[[], Any]]) -> Iterator[Any]:
        """The calls' results in order, each process taking every so many-th; in a process of `each`, one by one."""
        calls = list(calls)
        if self._inside or len(calls) < self.workers:
            yield from (call() for call in calls)
            return

        def share(worker: int, channel: "Channel") -> None:
            for call in calls[worker :: self.workers]:
                channel.send(call())

        with self._forked(share) as channels:
            for number in range(len(calls)):
                yield self._received(channels[number % self.workers])

    def each(self, calls: Sequence[tuple[int, Callable[[], Iterator[Any]]]]) -> Iterator[Any]:
        """What the calls give, in any order.

        A call that is more than one process's share of all is carried out here, where its own `execute` divides it; of
        the others, the largest first, each process takes the next when it has done one.

        Args:
            calls: (size, call); a call may give several results.
        """
        total = sum(size for size, _ in calls)
        for size, call in calls:
            if size * self.workers > total:
                yield from call()
        rest = [(size, call) for size, call in calls if size * self.workers <= total]
        ordered = [call for _, call in sorted(rest, key=lambda sized: -sized[0])]
        if ordered:
            yield from self._in_turn(ordered)

    def _in_turn(self, calls: Sequence[Callable[[], Iterator[Any]]]) -> Iterator[Any]:
        def share(worker: int, channel: "Channel") -> None:
            while (number := channel.receive()) is not None:
                for value in calls[number]():
                    channel.send((value,))
                channel.send(())

        left = iter(range(len(calls)))
        with self._forked(share) as channels:
            busy = channels[: len(calls)]
            for channel in busy:
                channel.send(next(left))
            while busy:
                ready = wait([channel.connection for channel in busy])
                for channel in [channel for channel in busy if channel.connection in ready]:
                    if given := self._received(channel):
                        yield given[0]
                        continue
                    number = next(left, None)
                    channel.send(number)
                    if number is None:
                        busy.remove(channel)

    def _received(self, channel: "Channel") -> Any:
        value = channel.receive()
        self._heard()
        return value

    @contextmanager
    def _forked(self, work: Work) -> Iterator[list["Channel"]]:
        """As many processes as there are workers, each at its work; none of them outlives the block."""
        channels: list[Channel] = []
        here = os.getpid()
        try:
            for worker in range(self.workers):
                ours, theirs = Pipe()
                process = _fork()
                if process == 0:
                    for other in [ours, *(channel.connection for channel in channels)]:
                        other.close()  # or a process would not see that this one's parent is gone
                    self._carry_out(work, worker, Channel(theirs, here))
                theirs.close()
                channels.append(Channel(ours, process))
            yield channels
        finally:
            for channel in channels:
                channel.end()

    def _carry_out(self, work: Work, worker: int, channel: "Channel") -> NoReturn:
        """All that a process does."""
        try:
            _end_with(channel.process)
            gc.freeze()  # a collection would write to, and so copy, what it shares with its parent
            self._inside = True
            self._begin(worker)
            work(worker, channel)
        except BaseException as error:
            with suppress(OSError):
                channel.fail(error)  # the parent raises it
            raise
        finally:
            os._exit(0)  # whatever is raised: what stands above this call is the parent's


class Channel:
    """One end of the way to another process.

    Args:
        process: its number.
    """

    def __init__(self, connection: Connection, process: int) -> None:
        self.connection, self.process = connection, process

    def send(self, value: Any) -> None:
        # Not Connection.send, for which torch has ways of its own to send tensors.
        with suppress(BrokenPipeError):  # the other end has failed and says so itself, or is gone
            self.connection.send_bytes(pickle.dumps((value, None)))

    def fail(self, error: BaseException) -> None:
        """Tells the other end, where `receive` raises the error."""
        self.connection.send_bytes(_pickled(error))

    def receive(self) -> Any:
        """The next value; the error by which the other process failed; CheckpointError if it is gone."""
        try:
            value, error = pickle.loads(self.connection.recv_bytes())
        except EOFError:
            raise CheckpointError(
                f"process {self.process} of the merge was ended from outside; is there enough memory?"
            ) from None
        if error is not None:
            raise error
        return value

    def end(self) -> None:
        """Ends the other process, which has nothing left to say, and waits for it."""
        self.connection.close()
        with suppress(ProcessLookupError):
            os.kill(self.process, signal.SIGKILL)
        os.waitpid(self.process, 0)


def _pickled(error: BaseException) -> bytes:
    """An error as it is, with where it happened unless it is the user's; one that cannot be sent as what it says."""
    if not isinstance(error, PolytaskError):
        error.add_note("in a process of the merge:\n" + "".join(traceback.format_tb(error.__traceback__)))
    try:
        content = pickle.dumps((None, error))
        pickle.loads(content)
    except (TypeError, AttributeError, pickle.PickleError):
        return pickle.dumps((None, RuntimeError("".join(traceback.format_exception(error)))))
    return content


def _fork() -> int:
    with warnings.catch_warnings():
        # Later Pythons warn of forking beside threads: those of linear algebra, which see to it, are all that is meant.
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def _end_with(parent: int) -> None:
    """This process is killed when its parent is, whose output it would go on writing."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it was gone before
        os._exit(1)


_PR_SET_PDEATHSIG = 1  # of sys/prctl.h
