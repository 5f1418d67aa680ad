"""The command line as its users meet it: arguments in; exit status, stdout and stderr out."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from cli.small_recipe import table, write_recipe

SERVER = Path(__file__).parent / "server.py"


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    status: int
    stdout: str
    stderr: str

    @property
    def error(self) -> str:
        """The one line of a command that refused its input."""
        assert self.status == 2, f"status {self.status}\n{self.stdout}\n{self.stderr}"
        lines = [line for line in self.stderr.splitlines() if line.startswith("error")]
        assert len(lines) == 1, self.stderr
        assert self.stderr.splitlines()[-1] == lines[0], self.stderr
        assert "Traceback" not in self.stderr
        return lines[0].removeprefix("error: ")


Polytask = Callable[..., Ended]


@pytest.fixture(scope="session")
def server() -> Iterator[subprocess.Popen]:
    environment = {key: value for key, value in os.environ.items() if key not in ("POLYTASK_DATA", "COLUMNS", "RANK")}
    with subprocess.Popen(
        [sys.executable, str(SERVER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()


@pytest.fixture
def polytask(server: subprocess.Popen, tmp_path: Path) -> Polytask:
    """Runs `polytask ARGUMENTS` in the test's folder."""

    def run(*arguments: object, limit: int | None = None, **environment: str) -> Ended:
        request = {
            "arguments": [str(argument) for argument in arguments],
            "cwd": str(tmp_path),
            "environment": {"COLUMNS": "100", **environment},
            "limit": limit,
        }
        assert server.stdin is not None
        assert server.stdout is not None
        server.stdin.write(json.dumps(request) + "\n")
        server.stdin.flush()
        return Ended(**json.loads(server.stdout.readline()))

    return run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The test's folder with x.csv, x.parquet and recipe.yaml in it."""
    table().write_csv(tmp_path / "x.csv")
    table().write_parquet(tmp_path / "x.parquet")
    write_recipe(tmp_path / "recipe.yaml")
    return tmp_path
