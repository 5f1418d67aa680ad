"""Fixtures that several rooms' tests share."""

import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from polytask.core import rules

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
def no_rule_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rule that a test adds is gone after it: the listing and the JSON schema name every rule that there is."""
    monkeypatch.setattr(rules._catalogue, "_added", dict(rules._catalogue._added))


@pytest.fixture
def untouched_random_state() -> Iterator[None]:
    """Fails a test that moves Python's, numpy's or torch's global random state."""
    import sklearn.datasets  # noqa: F401 (the first import draws from Python's generator, which is not ours to mend)

    before = _random_states()
    yield
    moved = [name for name, state in _random_states().items() if state != before[name]]
    assert not moved, f"the test moved the global random state of {', '.join(moved)}"


def _random_states() -> dict[str, object]:
    _, keys, position, has_gauss, gauss = np.random.get_state()  # noqa: NPY002 (the global state is what is watched)
    return {
        "random": random.getstate(),
        "numpy": (keys.tobytes(), position, has_gauss, gauss),
        "torch": torch.random.get_rng_state().numpy().tobytes(),
    }
