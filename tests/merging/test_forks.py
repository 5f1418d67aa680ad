"""Merging in several processes: the results, their errors, and that none of them outlives what it was made for."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file, save_file

from merging.models import content, jobs, models, opened
from polytask.core.errors import CheckpointError, NotFinite, UnknownName
from polytask.merging import driver
from polytask.merging.forks import AVAILABLE, Forks
from polytask.merging.pool import Threads

pytestmark = pytest.mark.skipif(not AVAILABLE, reason="polytask forks on Linux only; elsewhere it merges in threads")


class Unsendable(Exception):
    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} {second}")


def forks(workers: int = 3, begun: Callable[[int], None] = lambda worker: None) -> Forks:
    return Forks(workers, begun, lambda: None)


@pytest.fixture(autouse=True)
def no_process_is_left() -> Iterator[None]:
    before = psutil.Process().children(recursive=True)
    yield
    left = [process for process in psutil.Process().children(recursive=True) if process not in before]
    assert not left


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "WORTH_FORKING", 0)


def test_results_come_in_order_and_from_every_process() -> None:
    found = list(forks().execute([partial(lambda number: (number, os.getpid()), number) for number in range(20)]))
    assert [number for number, _ in found] == list(range(20))
    assert len({process for _, process in found}) == 3
    assert os.getpid() not in {process for _, process in found}


@pytest.mark.parametrize("kind", ["forks", "threads"])
def test_every_call_gives_all_that_it_has(kind: str) -> None:
    def call(number: int) -> Iterator[tuple[int, int]]:
        return ((number, part) for part in range(number))

    calls = [(1 + number, partial(call, number)) for number in range(12)]
    with forks() if kind == "forks" else Threads(3) as pool:
        found = list(pool.each(calls))
    assert sorted(found) == [(number, part) for number in range(12) for part in range(number)]


def test_a_call_that_is_most_of_the_work_is_divided() -> None:
    pool = forks()

    def large() -> Iterator[int]:
        yield from pool.execute([os.getpid] * 6)

    found = list(pool.each([(1, lambda: iter([0])), (100, large)]))
    assert len(set(found) - {0}) == 3


def test_a_process_knows_its_number_and_carries_out_one_by_one_within() -> None:
    seen: list[int] = []
    pool = forks(begun=seen.append)

    def call() -> Iterator[tuple[int, bool]]:
        inside = set(pool.execute([os.getpid] * 10))
        yield seen[0], inside == {os.getpid()}

    found = list(pool.each([(1, call)] * 30))
    assert {number for number, _ in found} <= {0, 1, 2}
    assert all(alone for _, alone in found)
    assert seen == []


def test_the_first_error_is_raised_here_and_ends_the_others() -> None:
    def fails() -> None:
        raise UnknownName("rule", "tise", ["ties"])

    with pytest.raises(UnknownName, match=r"^no rule 'tise' \(did you mean 'ties'\?\); allowed: ties$"):
        list(forks().execute([fails, partial(time.sleep, 60), partial(time.sleep, 60)] * 2))


def test_an_error_that_cannot_be_sent_is_told() -> None:
    def fails() -> None:
        raise Unsendable("nobody can", "send this")

    with pytest.raises(RuntimeError, match="Unsendable: nobody can send this"):
        list(forks().execute([fails] * 3))


def test_a_process_that_is_gone_is_missed() -> None:
    with pytest.raises(CheckpointError, match=r"process \d+ of the merge was ended from outside; is there enough mem"):
        list(forks().execute([lambda: os.kill(os.getpid(), signal.SIGKILL)] * 3))


@pytest.mark.parametrize("method", ["linear", "ties", "della", "upgrad", "graddrop", "sce", "breadcrumbs"])
def test_processes_write_the_bytes_of_one_thread(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = opened(models(tmp_path / "models"))
    alone = driver.merge(jobs(weights, method), tmp_path / "one", seed=1, workers=1)
    wanted = content(tmp_path / "one")
    monkeypatch.setattr(driver, "WORTH_FORKING", 0)
    for workers in (2, 5):
        said: list[tuple[int, int]] = []
        say = partial(_note, said)
        report = driver.merge(jobs(weights, method), tmp_path / "out", seed=1, workers=workers, progress=say)
        assert content(tmp_path / "out") == wanted
        assert report.tensors == alone.tensors
        assert report.bytes_read == alone.bytes_read
        assert said[-1][0] == said[-1][1]
        assert [done for done, _ in said] == sorted(done for done, _ in said)


def _note(said: list[tuple[int, int]], done: int, expected: int) -> None:
    said.append((done, expected))


@pytest.mark.usefixtures("forked")
@pytest.mark.parametrize("method", ["linear", "ties"])
def test_nan_is_named_and_nothing_is_left(method: str, tmp_path: Path) -> None:
    paths = models(tmp_path / "models")
    tensors = load_file(paths["b"] / "model.safetensors")
    tensors["layers.0.weight"][3, 4] = float("nan")
    save_file(tensors, paths["b"] / "model.safetensors", {"format": "pt"})
    with pytest.raises(NotFinite, match=r"b/model.safetensors: tensor 'layers.0.weight' is nan at index 3004"):
        driver.merge(jobs(opened(paths), method), tmp_path / "out", workers=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["models"]


ENDLESS = r"""
import os, sys, time
from pathlib import Path
from merging.models import jobs, opened
from polytask.merging import driver, streaming

def slow(*arguments):
    os.write(1, b"at it\n")
    time.sleep(600)
driver.WORTH_FORKING = 0
write, streaming._write = streaming._write, slow
paths = {name: Path(sys.argv[1]) / "models" / name for name in ("base", "a", "b", "c")}
driver.merge(jobs(opened(paths), "linear"), Path(sys.argv[1]) / "out", workers=2)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_processes_end_with_the_merge(how: signal.Signals, tmp_path: Path) -> None:
    models(tmp_path / "models", shapes={f"{number}.weight": (30, 40) for number in range(4)})
    path = os.pathsep.join([str(Path(__file__).resolve().parent.parent), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", ENDLESS, str(tmp_path)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path}
    )
    assert process.stdout is not None
    assert [process.stdout.readline() for _ in range(2)] == ["at it\n"] * 2
    working = psutil.Process(process.pid).children()
    assert len(working) == 2
    process.send_signal(how)
    process.communicate()
    gone, alive = psutil.wait_procs(working, timeout=10)
    assert len(gone) == 2
    assert not alive
    assert driver.merge(jobs(opened({"a": tmp_path / "models/a"}), "linear"), tmp_path / "out").tensors
