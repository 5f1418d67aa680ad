"""Fixtures that several rooms' tests share."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from polytask.core import rules
from polytask.sharing import SHARING
from polytask.testing.contract import generators

ROOT = Path(__file__).resolve().parent.parent

# The tests' tensors are small: more threads cost more than they give. A test about threads sets their number itself.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder with the real data sets: POLYTASK_DATA, else ../shared/data beside the checkout."""
    folder = Path(os.environ.get("POLYTASK_DATA") or ROOT.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"needs the data folder, and {folder} is none: set POLYTASK_DATA")
    return folder.resolve()


@pytest.fixture(scope="session")
def chromium() -> str:
    """The system's Chromium."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if path := shutil.which(name):
            return path
    pytest.skip("needs Chromium: `make system-packages` installs Debian's")


@pytest.fixture(autouse=True)
def nothing_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rule or architecture that a test adds is gone after it: listings and the JSON schema name all there are."""
    for catalogue in (rules._catalogue, SHARING):
        monkeypatch.setattr(catalogue, "_added", dict(catalogue._added))


@pytest.fixture
def untouched_random_state() -> Iterator[None]:
    """Fails a test that moves Python's, numpy's or torch's global random state."""
    import sklearn.datasets  # noqa: F401 (the first import draws from Python's generator, which is not ours to mend)

    before = generators()
    yield
    moved = [name for name, state in generators().items() if state != before[name]]
    assert not moved, f"the test moved the global random state of {', '.join(moved)}"
