"""An environment for the other libraries, outside the package: it sees this project's packages and adds theirs."""

import importlib
import os
import site
import subprocess
import sys
import types
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
PEERS = {"torchjd": "torchjd[full]==0.18.0", "LibMTL": "LibMTL==1.1.5"}
MODULES = {"torchjd": "torchjd.autojac", "LibMTL": "LibMTL.weighting"}


def environment(place: Path) -> Path:
    """The interpreter of the environment, which is made on first use."""
    python, stamp = place / "bin" / "python", place / "installed"
    if not stamp.exists():
        venv.create(place, with_pip=True, clear=True)
        packages = next((place / "lib").glob("python*/site-packages"))
        (packages / "project.pth").write_text("\n".join(site.getsitepackages()) + "\n", encoding="utf-8")
        for requirement in PEERS.values():
            # LibMTL names more than its weightings read: see `without_torchvision`
            extra = ["--no-deps"] if requirement.startswith("LibMTL") else []
            _run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *extra, requirement])
        stamp.touch()
    return python


def _run(command: list[str | Path]) -> None:
    subprocess.run([str(part) for part in command], check=True)


def measured_there(place: Path, *arguments: str) -> str:
    """What `python -m benchmarks.balancing.steps ARGUMENTS` prints in the environment."""
    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    command = [str(environment(place)), "-m", "benchmarks.balancing.steps", *arguments]
    settings = {**os.environ, "PYTHONPATH": paths, "OMP_WAIT_POLICY": "PASSIVE"}
    ended = subprocess.run(command, cwd=ROOT, env=settings, stdout=subprocess.PIPE, stderr=sys.stderr, text=True)
    ended.check_returncode()
    return ended.stdout


def without_torchvision() -> None:
    """Puts empty modules where LibMTL imports torchvision's.

    It reads them for its ResNet only, and needs a module that torchvision has dropped years ago.
    """
    for name in ("torchvision", "torchvision.models", "torchvision.models.utils", "torchvision.transforms"):
        module = sys.modules.setdefault(name, types.ModuleType(name))
        parent, _, last = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], last, module)
    vars(sys.modules["torchvision.models.utils"]).setdefault("load_state_dict_from_url", None)


def why_not(peer: str) -> str | None:
    """The message with which a peer refuses to be imported here; None if it runs."""
    if peer == "LibMTL":
        without_torchvision()
    try:
        importlib.import_module(MODULES[peer])
    except (ImportError, AttributeError) as error:
        return f"{type(error).__name__}: {error}"
    return None
