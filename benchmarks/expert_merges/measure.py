"""The measurement: experts are trained once and kept, every method merges them, every merge is scored.

What a method tries is scored on the validation split, each task's metric as a share of its expert's; the best setting
is scored on the test split, and so are the defaults. What is finished is kept, for a measurement that was interrupted.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from torch import Tensor

from benchmarks.expert_merges.apart import MergeFailed, merged_apart
from benchmarks.expert_merges.scoring import Scorer, Scores, scaled
from benchmarks.expert_merges.settings import MASK_SCALES, SCALES, SETTINGS, STORES, Method, methods_for
from polytask.checkpoints import read_checkpoint, resolve
from polytask.checkpoints.directory import json_bytes, read_json, write_file
from polytask.core.errors import NotFinite
from polytask.evaluation.formatting import fixed
from polytask.merging.stores.packing import pack
from polytask.merging.stores.unpacking import StoredTask
from polytask.studies.alternating import alternate
from polytask.studies.experts import JOINT, Experts, train_experts
from polytask.training.events import Listener
from polytask.training.job import Job

Say = Callable[[str], None]
Row = dict[str, Any]

ROUNDS = 5
"""Of alternating tuning and merging."""


def measure(
    job: Job,
    place: Path,
    methods: Sequence[str | Mapping[str, Any]],
    say: Say,
    *,
    data_dir: Path | None = None,
    alone: bool = True,
) -> dict[str, Any]:
    """Trains, merges and scores.

    Args:
        job: the run on all tasks.
        place: of rows and outputs; the experts go beside it, named after what they were trained by.
        methods: see `settings.methods_for`.
        say: takes lines of progress.
        data_dir: where the rows are that a learned merge reads.
        alone: whether what stands beside the methods is measured too; another result has it otherwise.
    """
    experts, listener = trained(job, place, say, joint=alone), Runs(say)
    bench = Bench(job, experts, place, say, data_dir)
    chosen, left_out = methods_for(job.tasks, methods)
    rows = []
    for method in chosen:
        row = bench.kept(method.name, lambda method=method: bench.method(method))
        rows += [row] if "failed" not in row else []
        left_out |= {method.name: row["failed"]} if "failed" in row else {}
    return {
        "tasks": {
            task: {
                "metric": experts.results[task]["tasks"][task]["metric"],
                **{split: scores[task] for split, scores in bench.experts.items()},
            }
            for task in job.tasks
        },
        "seed": job.run.seed,
        "settings_tried": SETTINGS,
        "rows": rows,
        "left_out": left_out,
        "beside": bench.beside(place.parent / f"alternating-{digest(job)}", [listener]) if alone else {},
        "training": {name: _training(found) for name, found in experts.results.items()},
        "commits_of_runs": commits_of(experts),
    }


def trained(job: Job, place: Path, say: Say, *, joint: bool = False) -> Experts:
    """The experts, which go beside `place`: trained, or as they lie there."""
    return train_experts(job, place.parent / f"experts-{digest(job)}", joint=joint, listeners=[Runs(say)])


def digest(job: Job) -> str:
    """Of what the experts are trained by, for names."""
    return hashlib.sha256(json_bytes(job.recipe)).hexdigest()[:12]


def commits_of(experts: Experts) -> list[str]:
    """Those at which the experts were trained."""
    return sorted({str(found["provenance"]["commit"]) for found in experts.results.values()})


class Bench:
    """Merges the experts and scores what comes out.

    Attributes:
        experts: split -> task -> the score of the task's expert.
    """

    def __init__(self, job: Job, experts: Experts, place: Path, say: Say, data_dir: Path | None) -> None:
        self._job, self._tasks, self._of = job, list(job.tasks), experts
        self._place, self._say, self._data_dir = place, say, data_dir
        self._scorer = Scorer(job)
        self._own = {task: weights_of(path) for task, path in experts.tasks.items()}
        everywhere = set.intersection(*(set(own) for own in self._own.values()))
        self._base = {name: value for name, value in weights_of(experts.base).items() if name in everywhere}
        self.experts = {
            split: {task: _score(experts.results[task], task, split) for task in self._tasks} for split in _SPLITS
        }

    def kept(self, name: str, make: Callable[[], Row]) -> Row:
        return kept(self._place, name, make)

    def method(self, method: Method) -> Row:
        """A method with the settings that it tries."""
        name, other = method.name, method.other_parameters()
        try:
            weights, cost = self._merged(method)
            tries = [self._try(weights, {"scale": scale}) for scale in SCALES[: SETTINGS - len(other)]]
            best = _best(tries)
            if other and best.score is not None:
                changed = replace(method, parameters={**method.parameters, **other})
                tries.append(self._try(self._merged(changed)[0], {**best.settings, **other}))
                best = _best(tries)
        except MergeFailed as error:
            return {"name": name, "failed": str(error)}
        if best.score is None:
            return {"name": name, "failed": "the merged model's outputs are NaN or infinite"}
        test = self._scorer(best.weights, "test")
        self._say(f"  {name}: {_said(test, self.experts['test'])} with {best.settings}, {cost['seconds']:.1f} s")
        return {
            "name": name,
            "settings": best.settings,
            "tried": [{**one.settings, "score": one.score} for one in tries],
            "valid": best.valid,
            "test": test,
            "defaults": {
                "valid": tries[0].valid,
                "test": test if best is tries[0] else self._scorer(tries[0].weights, "test"),
            },
            **cost,
        }

    def beside(self, alternating: Path, listeners: Sequence[Listener] = ()) -> dict[str, Row]:
        """What stands beside the methods.

        Args:
            alternating: where experts are tuned and merged in turn.
            listeners: called with the events of that.
        """
        stores = {kind: self.kept(f"store-{kind}", lambda kind=kind: self.store(kind)) for kind in STORES}
        base, atm = self.kept("base", self.base), self.kept("atm", lambda: self.atm(alternating, listeners))
        return {"base": base, "joint": self.joint(), "atm": atm, **stores}

    def base(self) -> Row:
        """The start itself, with the experts' heads: what a merge that changes nothing would be."""
        return {split: self._scorer(self._whole(self._base), split) for split in _SPLITS}

    def joint(self) -> Row:
        """One model of all tasks, trained."""
        found = self._of.results[JOINT]
        return {split: {task: _score(found, task, split) for task in self._tasks} for split in _SPLITS}

    def atm(self, place: Path, listeners: Sequence[Listener]) -> Row:
        """Tuning and merging in turn, with as many steps as the experts had."""
        merged = alternate(self._job, place, rounds=ROUNDS, listeners=listeners)
        weights = self._whole(weights_of(merged))
        return {**{split: self._scorer(weights, split) for split in _SPLITS}, "rounds": ROUNDS}

    def store(self, kind: str) -> Row:
        """A store, and each task's model from it on its own task; of TALL-masks each task takes its best."""
        best: dict[str, Scores] = {split: dict.fromkeys(self._tasks, float("-inf")) for split in _SPLITS}
        about: Row = {}
        chosen: dict[str, dict[str, float]] = {}
        models = {task: str(path) for task, path in self._of.tasks.items()}
        for settings in [{"mask_scale": scale} for scale in MASK_SCALES] if kind == "tall_masks" else [{}]:
            folder = self._place / "store"
            shutil.rmtree(folder, ignore_errors=True)
            packed = pack(str(self._of.base), models, folder, kind=kind, settings=settings)
            about = about or {"bytes": packed["bytes"], "bytes_of_models": sum(packed["bytes_of_models"].values())}
            for task in self._tasks:
                with StoredTask(folder, task) as stored:
                    weights = self._whole({name: stored.tensor(name) for name in stored.layout()})
                valid = self._scorer(weights, "valid", [task])
                if valid[task] > best["valid"][task]:
                    best["valid"] |= valid
                    best["test"] |= self._scorer(weights, "test", [task])
                    chosen[task] = settings
        self._say(f"  {kind}: {_said(best['test'], self.experts['test'])}")
        return {**best, **about, "settings": chosen}

    def _whole(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """With the experts' heads where they are missing."""
        heads = {name: value for own in self._own.values() for name, value in own.items() if name not in self._base}
        return {**heads, **weights}

    def _merged(self, method: Method) -> tuple[dict[str, Tensor], dict[str, float]]:
        """The merged weights, and what the merge cost."""
        out = self._place / "merged"
        shutil.rmtree(out, ignore_errors=True)
        models = {task: str(path) for task, path in self._of.tasks.items()}
        plan = {"base": str(self._of.base), "tasks": models, "rule": {"kind": method.kind, **method.parameters}}
        data = {} if method.data is None else {"data": method.data}
        cost = merged_apart({**plan, **data}, out, self._data_dir)
        return weights_of(out), cost

    def _try(self, merged: Mapping[str, Tensor], settings: dict[str, Any]) -> "_Try":
        weights = scaled(self._base, merged, settings["scale"])
        try:
            valid = self._scorer(weights, "valid")
        except NotFinite:
            return _Try(settings, weights, {}, None)
        return _Try(settings, weights, valid, share(valid, self.experts["valid"]))


def kept(place: Path, name: str, make: Callable[[], Row]) -> Row:
    """The row from its file, or made and written there."""
    path = place / "rows" / f"{quote(name, safe=' =')}.json"
    if not path.exists():
        row = make()
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, json_bytes(row))
    return read_json(path)


_SPLITS = ("valid", "test")


@dataclass(frozen=True)
class _Try:
    """A setting with its score on the validation split; None where the model gave no numbers."""

    settings: dict[str, Any]
    weights: Mapping[str, Tensor]
    valid: Scores
    score: float | None


def _best(tries: Sequence[_Try]) -> _Try:
    """Of the highest score; the first of equals, so that the defaults come before others."""
    return max(tries, key=lambda one: float("-inf") if one.score is None else one.score)


def share(scores: Mapping[str, float], experts: Mapping[str, float]) -> float:
    """The mean over tasks of the score as a share of the expert's; an expert that is worth nothing has no shares."""
    shares = [scores[task] / own for task, own in experts.items() if own > 0]
    return sum(shares) / len(shares)


def _score(results: Mapping[str, Any], task: str, split: str) -> float:
    return results[split][task][results["tasks"][task]["metric"]]


def _training(results: Mapping[str, Any]) -> dict[str, Any]:
    return {key: results[key] for key in ("steps", "best_step", "seconds")}


def weights_of(run: Path) -> dict[str, Tensor]:
    """The tensors of a run's best checkpoint."""
    return dict(read_checkpoint(resolve(run)).tensors())


def _said(scores: Mapping[str, float], experts: Mapping[str, float]) -> str:
    parts: Iterable[str] = (f"{task} {fixed(value, 3)}" for task, value in scores.items())
    return f"{share(scores, experts):.1%} ({', '.join(parts)})"


class Runs:
    """One line a run."""

    def __init__(self, say: Say) -> None:
        self._say = say

    def __call__(self, event: Mapping[str, Any]) -> None:
        if event["event"] == "run":
            self._say(f"  run {event['index']} of {event['of']}: {event['name']}")
        elif event["event"] == "evaluate":
            self._say(f"    step {event['step']}: {json.dumps(event['metrics'])}, {event['seconds']:.0f} s")
