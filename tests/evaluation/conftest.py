"""Directories as training writes them."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def run_directories() -> ModuleType:
    """The generator of run and compare directories beside this file."""
    spec = importlib.util.spec_from_file_location("run_directories", Path(__file__).parent / "run_directories.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
