"""The measurement of the experiment `merging`: what is run, how often, and what is kept of it."""

import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.merging import models
from benchmarks.merging.methods import METHODS, OWN, Method, own_plan
from benchmarks.merging.timing import timed
from benchmarks.results import ROOT
from polytask.core.errors import MissingInput
from polytask.merging.pool import processors

MERGEKIT = ROOT / "build" / "mergekit"
VERSION = "0.1.5"
REPEATS = 3  # of everything but mergekit's slow methods, which are run once
SLOW = 20.0  # seconds
MEMORY_GOAL = 300 * 2**20
MATRIX_GOAL = 1.2
MATRIX_LAYERS = 1
Say = Callable[[str], None]


def measure(place: Path, parameters: float, say: Say) -> dict[str, Any]:
    """Times everything on models of `parameters`, and polytask on models twice that size; the models are kept.

    Args:
        place: a folder for models, outputs and logs.
        parameters: of the smaller models; 0.5e9 makes the experiment.
        say: takes lines of progress.
    """
    tool = MERGEKIT / "bin" / "mergekit-yaml"
    if not tool.exists():
        raise MissingInput(f"{tool} is missing: 'make bench-merging' makes mergekit's own environment first")
    sizes = [models.layers_for(parameters), models.layers_for(2 * parameters)]
    folders = [_made(place.parent / "merging-models", layers, say) for layers in sizes]
    matrices = _made(place.parent / "merging-models", MATRIX_LAYERS, say)
    bench = Bench(place, tool, say)
    return {
        "parameters": models.parameters(sizes[0]),
        "parameters_of_the_larger": models.parameters(sizes[1]),
        "threads": processors(),
        "mergekit": VERSION,
        "repeats": REPEATS,
        "torch_imported": bench.repeated("import of torch", [sys.executable, "-c", "import torch"]),
        "floor": {what: bench.floor(what, folders[0]) for what in ("copy", "mean")},
        "methods": [bench.method(method, folders[0], folders[1]) for method in METHODS],
        "own": [bench.own(name, rule, folders) for name, rule in OWN.items()],
        "matrices": bench.matrices(matrices),
        "goals": {"memory": MEMORY_GOAL, "matrices": MATRIX_GOAL},
    }


class Bench:
    """Runs commands and keeps their times.

    Args:
        place: of outputs and logs.
        tool: mergekit's command.
        say: takes lines of progress.
    """

    def __init__(self, place: Path, tool: Path, say: Say) -> None:
        self.place, self.tool, self.say = place, tool, say

    def method(self, method: Method, folder: Path, larger: Path) -> dict[str, Any]:
        """Both tools in turn, and polytask on the larger models."""
        plan = self._plan(method.name, method.mergekit(folder))
        times: dict[str, list[dict[str, Any]]] = {"polytask": [], "mergekit": []}
        for turn in range(REPEATS):
            if not times["mergekit"] or times["mergekit"][0]["seconds"] < SLOW:
                times["mergekit"].append(self._timed([str(self.tool), str(plan), str(self._out()), *_QUIETLY]))
            times["polytask"].append(self._merge(plan))
            self.say(f"  {method.name}, turn {turn + 1}: {_said(times)}")
        bigger = self._plan(f"{method.name}-larger", method.mergekit(larger))
        return {
            "name": method.name,
            "goal": method.goal,
            "polytask": self._with_memory(times["polytask"], plan),
            "mergekit": _summary(times["mergekit"]),
            "polytask_larger": self._with_memory([self._merge(bigger)], bigger),
        }

    def own(self, name: str, rule: Mapping[str, Any], folders: Sequence[Path]) -> dict[str, Any]:
        """What mergekit lacks, at both sizes."""
        plans = [self._plan(f"own-{size}", own_plan(dict(rule), folder)) for size, folder in enumerate(folders)]
        found = [self._with_memory([self._merge(plan)], plan) for plan in plans]
        self.say(f"  {name}: {found[0]['seconds']:.1f} s, {found[1]['seconds']:.1f} s at twice the size")
        return {"name": name, "polytask": found[0], "polytask_larger": found[1]}

    def floor(self, what: str, folder: Path) -> dict[str, Any]:
        return self.repeated(what, [sys.executable, "-m", "benchmarks.merging.floor", what, str(folder), "OUT"])

    def matrices(self, folder: Path) -> dict[str, Any]:
        """Iso-C beside its decompositions, taken in turn; both with one interpreter's start and torch's import."""
        plan = self._plan("matrices", own_plan({"kind": "iso_c"}, folder))
        alone = [sys.executable, "-m", "benchmarks.merging.floor", "svd", str(folder), str(processors())]
        runs: dict[str, list[dict[str, Any]]] = {"decompositions": [], "polytask": []}
        for _ in range(REPEATS):
            runs["decompositions"].append(self._timed(alone))
            runs["polytask"].append(self._merge(plan))
        self.say(f"  matrices: {_said(runs)}")
        return {"rule": "iso_c", **{name: _summary(found) for name, found in runs.items()}}

    def repeated(self, name: str, command: Sequence[str]) -> dict[str, Any]:
        found = _summary([self._timed(command) for _ in range(REPEATS)])
        self.say(f"  {name}: {found['seconds']:.2f} s")
        return found

    def _with_memory(self, runs: Sequence[Mapping[str, Any]], plan: Path) -> dict[str, Any]:
        """Times of these runs, and the memory of one more, since looking at several processes' takes time."""
        return _summary([*runs]) | {"anonymous": self._merge(plan, looks=True)["anonymous"]}

    def _merge(self, plan: Path, *, looks: bool = False) -> dict[str, Any]:
        return self._timed([sys.executable, "-m", "polytask", "merge", str(plan), "--out", "OUT"], looks=looks)

    def _plan(self, name: str, content: str) -> Path:
        path = self.place / f"{name}.yaml"
        path.write_text(content, encoding="utf-8")
        return path

    def _out(self) -> Path:
        """A fresh place for an output; removing the last one is nobody's time."""
        out = self.place / "out"
        shutil.rmtree(out, ignore_errors=True)
        os.sync()  # what the last one wrote must not slow the next
        return out

    def _timed(self, command: Sequence[str], *, looks: bool = True) -> dict[str, Any]:
        out = str(self._out())
        return timed([out if part == "OUT" else part for part in command], self.place / "log", _OFFLINE, looks=looks)


# mergekit reads no tokenizer here; neither tool looks anything up, and both may use every processor.
_QUIETLY = ("--no-copy-tokenizer",)
_OFFLINE = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(processors())}


def _made(place: Path, layers: int, say: Say) -> Path:
    folder = place / f"layers-{layers}"
    if not (folder / "made").exists():
        say(f"  making a base and three fine-tunes of {models.parameters(layers):,} parameters")
        command = [sys.executable, "-m", "benchmarks.merging.models", str(folder), str(layers)]
        subprocess.run(command, check=True, cwd=ROOT)
    return folder


def _summary(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Medians, and every run's seconds."""
    return {
        "seconds": statistics.median(run["seconds"] for run in runs),
        "anonymous": max(run["anonymous"] for run in runs),
        "runs": [run["seconds"] for run in runs],
    }


def _said(times: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    return ", ".join(f"{name} {runs[-1]['seconds']:.1f} s" for name, runs in times.items() if runs)
