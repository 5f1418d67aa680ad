"""Each task's own graft, alone on the base and scored on its task with its head: learned, and simply the largest.

A method is {kind: graft, and the parameters of the learned merge} or {kind: trim, density}. Masks are learned on
training rows; nothing is chosen, so the validation split is told beside the test split.
"""

import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from benchmarks.expert_merges.measure import Row, Say, commits_of, kept, trained, weights_of
from benchmarks.expert_merges.scoring import Scorer
from polytask.core.errors import UnknownName
from polytask.evaluation.formatting import fixed
from polytask.evaluation.run_samples import RunRows, RunSamples
from polytask.merging.learning import learn
from polytask.merging.stores.packing import pack
from polytask.merging.stores.unpacking import StoredTask
from polytask.studies.experts import Experts, start_of
from polytask.training.job import Job

BATCH = 16
KINDS = ("graft", "trim")
_NOT_PARAMETERS = ("kind", "tasks")
Weights = Mapping[str, Tensor]


def measure(job: Job, place: Path, methods: Sequence[Mapping[str, Any]], say: Say) -> dict[str, Any]:
    """Trains the experts, or takes those that lie there, and grafts each.

    Args:
        job: the run on all tasks.
        place: of what is finished, a file a method and task, and of the store; the experts go beside it.
        methods: see above; one with `tasks` grafts those alone.
        say: takes lines of progress.
    """
    experts = trained(job, place, say)
    return {**grafted(job, experts, place, methods, say), "commits_of_runs": commits_of(experts)}


def grafted(job: Job, experts: Experts, place: Path, methods: Sequence[Mapping[str, Any]], say: Say) -> dict[str, Any]:
    """{tasks: the scores of each expert and of the base with its head, rows: a method with its scores by task, ...}."""
    for method in methods:
        if method["kind"] not in KINDS:
            raise UnknownName("kind of graft", method["kind"], KINDS)
    bench = Bench(job, experts, place)
    tasks = {
        task: {
            "metric": job.targets[task].task.metric,
            "expert": bench.score(task, bench.own[task]),
            "base": bench.score(task, {}),
        }
        for task in job.tasks
    }
    rows = []
    for method in methods:
        name = _name(method)
        found = {
            task: kept(place, f"{name} {task}", lambda task=task, method=method: bench.of(method, task))
            for task in method.get("tasks", job.tasks)
        }
        rows.append({"name": name, "density": method["density"], "kind": method["kind"], "tasks": found})
        scores = ", ".join(f"{task} {fixed(each['test'], 3)}" for task, each in found.items())
        say(f"  {name}: {scores}")
    return {"tasks": tasks, "elements": bench.elements, "batch_size": BATCH, "seed": job.run.seed, "rows": rows}


class Bench:
    """Grafts and scores them.

    Attributes:
        own: task -> the tensors of its expert.
        elements: of a model without heads.
    """

    def __init__(self, job: Job, experts: Experts, place: Path) -> None:
        self._job, self._experts, self._place = job, experts, place
        self._scorer = Scorer(job)
        self.own = {task: weights_of(path) for task, path in experts.tasks.items()}
        shared = set.intersection(*(set(own) for own in self.own.values()))
        self._base = {name: value for name, value in weights_of(experts.base).items() if name in shared}
        self._heads = {n: value for own in self.own.values() for n, value in own.items() if n not in shared}
        self.elements = sum(value.numel() for value in self._base.values() if value.is_floating_point())

    def score(self, task: str, weights: Weights) -> dict[str, float]:
        """Split -> the task's metric of the base with these weights in the place of its own, and the expert's head."""
        whole = {**self._heads, **self._base, **weights}
        return {split: self._scorer(whole, split, [task])[task] for split in ("valid", "test")}

    def of(self, method: Mapping[str, Any], task: str) -> Row:
        """The scores of one method's graft of the task, what it cost, and what the descent tells of itself."""
        parameters = {key: value for key, value in method.items() if key not in _NOT_PARAMETERS}
        start = time.perf_counter()
        weights, facts = getattr(self, f"_{method['kind']}")(task, **parameters)
        return {"seconds": time.perf_counter() - start, **self.score(task, weights), **facts}

    def _graft(self, task: str, **parameters: Any) -> tuple[Weights, Row]:
        model = {name: self.own[task][name] for name in self._base}
        found, weights = learn("graft", {task: model}, self._samples(task), base=self._base, **parameters)
        return weights, {**found.facts, "turned_over": found.facts["turned_over"][task]}

    def _samples(self, task: str) -> RunSamples:
        """The task's training rows, all of them, and a model with its head."""
        model = start_of(self._job).build()
        model.load_state_dict({**self._heads, **self._base})
        sources = self._job.sources[task]
        parts = [self._job.data.sources[source].splits["train"] for source in sources]
        rows = RunRows(model, {task: self._job.targets[task]}, parts, {source: [task] for source in sources})
        return RunSamples({task: rows}, "train", BATCH, self._job.run.seed)

    def _trim(self, task: str, density: float) -> tuple[Weights, Row]:
        """What a store keeps of the task: the elements that moved furthest."""
        folder = self._place / "store"
        shutil.rmtree(folder, ignore_errors=True)
        models = {name: str(path) for name, path in self._experts.tasks.items()}
        pack(str(self._experts.base), models, folder, kind="sparse", settings={"density": density})
        with StoredTask(folder, task) as stored:
            return {name: stored.tensor(name).clone() for name in stored.layout() if name in self._base}, {}


def _name(method: Mapping[str, Any]) -> str:
    parameters = (f"{key}={value:g}" for key, value in method.items() if key not in _NOT_PARAMETERS)
    return " ".join([method["kind"], *parameters])
