"""The one loop: a run is its stages, each a sequence of steps with evaluations and checkpoints in between."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from polytask.checkpoints import pointed, read_checkpoint
from polytask.checkpoints.directory import json_bytes, write_file
from polytask.core.errors import CheckpointError, NotFinite
from polytask.evaluation.scores import evaluate, selection_score
from polytask.sharing import describe
from polytask.tasks.examples import Batch
from polytask.tasks.metrics import METRICS
from polytask.training import snapshot
from polytask.training.batchnorm import synchronize_batchnorm
from polytask.training.devices import Devices
from polytask.training.events import EventLog, Listener, cut
from polytask.training.features import FeatureCache, cached_rows
from polytask.training.job import Job
from polytask.training.memory import peak_mb, start_measuring
from polytask.training.provenance import provenance
from polytask.training.snapshot import Progress
from polytask.training.stage import Stage, training_rows

EVALUATION_BATCH = 2048


def fit(
    job: Job,
    out: Path,
    *,
    resume: bool = False,
    listeners: Sequence[Listener] = (),
    features: FeatureCache | None = None,
) -> dict[str, Any]:
    """Trains, evaluates and writes RUN; returns what RUN/results.json holds.

    Args:
        job: what to train.
        out: the run's directory; must be new or empty unless `resume`.
        resume: continue from RUN/last, or start if there is none.
        listeners: called with every event.
        features: frozen encoders' outputs shared between runs on the same rows.
    """
    out = Path(out)
    devices = Devices(job.run)
    last = _prepared(out, job, resume, devices)
    state = last.state() if last is not None else None
    with devices.settings(state["threads"] if state else None):
        session = _Session(job, out, devices, tuple(listeners), features if features is not None else {}, last, state)
        try:
            session.train()
            return session.finish()
        finally:
            session.events.close()


class _Session:
    """A run in progress; `fit` makes one."""

    def __init__(
        self,
        job: Job,
        out: Path,
        devices: Devices,
        listeners: tuple[Listener, ...],
        features: FeatureCache,
        last: Any,
        state: Any,
    ) -> None:
        self.job, self.out, self.devices = job, out, devices
        start_measuring(devices.device)
        self.progress = Progress(**state["progress"]) if state else Progress()
        self._stage_state = state["stage"] if state else None
        if devices.is_first:
            cut(out / "events.jsonl", state["events"]) if state else (out / "events.jsonl").write_bytes(b"")
        self.events = EventLog(
            out / "events.jsonl" if devices.is_first else None, listeners if devices.is_first else ()
        )
        model = job.build()
        if last is not None:
            model.load_state_dict(last.tensors())
        if job.run.sync_batchnorm and devices.world > 1:
            synchronize_batchnorm(model)
        self.model = model.to(devices.device)
        self.train_rows = cached_rows(model, training_rows(job), features, "train", devices)
        valid = {name: job.data.sources[name].splits["valid"] for name in self.train_rows}
        self.valid_rows = cached_rows(model, valid, features, "valid", devices)
        self.features = features
        self._best_tensors: dict[str, torch.Tensor] | None = None
        self._valid: dict[str, Any] = {}
        self._evaluated_at = -1
        if not state:
            self._event("start", tasks=job.tasks, stages=[stage.name for stage in job.stages], processes=devices.world)
            for remark in job.data.remarks:
                self._event("message", text=remark)

    def train(self) -> None:
        for index in range(self.progress.stage, len(self.job.stages)):
            stage = Stage(self.job, self.job.stages[index], index, self.model, self.train_rows, self.devices)
            if self._stage_state is not None:
                stage.load_state_dict(self._stage_state)
                self._stage_state = None
            reason = self._run_stage(stage)
            self._event("stop", reason=reason, stage_steps=self.progress.stage_step)
            if index + 1 < len(self.job.stages):
                self.progress.stage, self.progress.stage_step, self.progress.since_best = index + 1, 0, 0

    def _run_stage(self, stage: Stage) -> str:
        progress, spec = self.progress, stage.spec
        stops = self._stops_early(stage)  # a run resumed at the evaluation that ended the stage
        while progress.stage_step < stage.steps and not stops:
            for pieces in stage.batches(progress.stage_step):
                self._step(stage, pieces)
                every = self.job.run.evaluate_every
                ended = progress.stage_step >= stage.steps
                if stage.ends_epoch(progress.stage_step):
                    stage.balancer.after_epoch()
                if ended or (stage.ends_epoch(progress.stage_step) if every is None else progress.step % every == 0):
                    self._evaluate(stage)
                    stops = self._stops_early(stage)
                elif self._checkpoint_due():
                    self._save(stage, is_best=False)
                if ended or stops:
                    break
        return "early stopping" if stops and spec.early_stopping else "all steps done"

    def _step(self, stage: Stage, pieces: list[Batch]) -> None:
        progress = self.progress
        started = time.perf_counter()
        try:
            report = stage.train(pieces, progress.stage_step)
        except NotFinite as error:
            raise self._not_finite(error, pieces) from error
        progress.seconds += time.perf_counter() - started
        rate = stage.learning_rate(progress.stage_step)
        progress.stage_step += 1
        progress.step += 1
        if report is not None and (progress.step % self.job.run.log_every == 0 or progress.step == 1):
            values: dict[str, Any] = {"losses": report.losses, "weights": report.weights}
            cosines = report.cosines
            if cosines is not None:
                table = [[None if value != value else value for value in row] for row in cosines.tolist()]
                values["cosines"] = {"tasks": report.tasks, "values": table}
            self._event("step", **values, learning_rate=rate, of=stage.steps)

    def _not_finite(self, error: NotFinite, pieces: list[Batch]) -> NotFinite:
        """The error with the run's step, after the row numbers of the batch are saved."""
        path = self.out / "not_finite.json"
        rows = {piece.source: piece.rows.tolist() for piece in pieces}
        write_file(path, json_bytes({"step": self.progress.step + 1, "error": str(error), "rows": rows}))
        return NotFinite(
            f"step {self.progress.step + 1} of the run: {error}; the row numbers of the batch are in {path}, "
            f"what was saved before is kept; a lower learning rate, clip or another label scale may help"
        )

    def _evaluate(self, stage: Stage) -> None:
        """Scores the validation split, and saves if the recipe says so."""
        progress, job = self.progress, self.job
        with self.devices.autocast():
            self._valid, losses = evaluate(self.model, self.valid_rows, job.targets, EVALUATION_BATCH)
        selection = selection_score(self._valid, job.targets)
        score = selection.value
        gain = 0.0 if stage.spec.early_stopping is None else stage.spec.early_stopping.least_gain
        is_best = progress.best_score is None or (score is not None and score > progress.best_score + gain)
        is_best = self.devices.agreed(is_best)
        if is_best:
            progress.best_score, progress.best_step, progress.best_valid = score, progress.step, self._valid
            progress.since_best = 0
        else:
            progress.since_best += 1
        self._event(
            "evaluate",
            split="valid",
            metrics=self._valid,
            losses=losses,
            score=score,
            undefined=selection.left_out,
            best=is_best,
        )
        if job.run.checkpoint_every == "end":
            if is_best:
                self._best_tensors = {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()}
        elif is_best or job.run.checkpoint_every == "evaluation" or self._checkpoint_due():
            self._save(stage, is_best)

    def _stops_early(self, stage: Stage) -> bool:
        early = stage.spec.early_stopping
        return early is not None and self.progress.since_best >= early.patience

    def _checkpoint_due(self) -> bool:
        every = self.job.run.checkpoint_every
        return isinstance(every, int) and self.progress.step % every == 0

    def _save(self, stage: Stage, is_best: bool) -> None:
        if self.devices.is_first:
            self._event("checkpoint", best=is_best)
            state = snapshot.session_state(
                self.progress, stage.state_dict(), self.events.position(), self.job.run.deterministic
            )
            path = snapshot.save(
                self.out,
                self.job,
                self.model,
                self.progress,
                metrics={"valid": self._valid} if is_best else {},
                state=state,
            )
            snapshot.point_and_prune(self.out, path, is_best, self.job.run.keep)
        self.devices.wait()

    def finish(self) -> dict[str, Any]:
        """Scores the best model on the test split, once, and writes results.json and the model's final card."""
        job, progress = self.job, self.progress
        best = pointed(self.out, "best")
        tensors = read_checkpoint(best).tensors() if best is not None else self._best_tensors
        assert tensors is not None  # every stage ends with an evaluation
        self.model.load_state_dict(tensors)
        results = self._results()
        if self.devices.is_first:
            metrics = {split: results[split] for split in ("valid", "test") if results[split]}
            state = read_checkpoint(best).state() if best is not None and (best / snapshot.STATE).exists() else None
            path = snapshot.save(
                self.out,
                job,
                self.model,
                progress,
                metrics=metrics,
                state=state,
                tensors=tensors,
                step=progress.best_step,
            )
            if best is None:
                snapshot.point_and_prune(self.out, path, True, job.run.keep)
            write_file(self.out / "results.json", json_bytes(results))
        self.devices.wait()
        return results

    def _results(self) -> dict[str, Any]:
        job, progress = self.job, self.progress
        test = {
            name: job.data.sources[name].splits["test"]
            for name in self.train_rows
            if "test" in job.data.sources[name].splits
        }
        scored: dict[str, Any] = {}
        if test:
            rows = cached_rows(self.model, test, self.features, "test", self.devices)
            with self.devices.autocast():
                scored, _ = evaluate(self.model, rows, job.targets, EVALUATION_BATCH)
        tasks = {
            task: {
                "kind": target.task.kind,
                "metric": target.task.metric,
                "higher_is_better": METRICS[target.task.metric].higher_is_better,
                "role": target.task.role,
            }
            for task, target in job.targets.items()
        }
        counts = describe(self.model)
        return {
            "kind": "train",
            "version": 1,
            "tasks": tasks,
            "valid": progress.best_valid,
            "test": scored,
            "score": progress.best_score,
            "best_step": progress.best_step,
            "steps": progress.step,
            "seconds": progress.seconds,
            "parameters": {"total": counts["parameters"], "shared": counts["shared"], "private": counts["private"]},
            "peak_memory_mb": peak_mb(self.devices.device),
            "seed": job.run.seed,
            "rule": job.stages[-1].rule.kind,
            "sharing": job.model.sharing.kind,
            "provenance": provenance(),
        }

    def _event(self, event: str, **values: Any) -> None:
        progress = self.progress
        stage = self.job.stages[progress.stage]
        self.events.write(
            event,
            step=progress.step,
            stage_step=progress.stage_step,
            stage=stage.name,
            seconds=round(progress.seconds, 4),
            **values,
        )


def _prepared(out: Path, job: Job, resume: bool, devices: Devices) -> Any:
    """The checkpoint to resume from, or None; the run's directory with its recipe."""
    last = pointed(out, "last")
    if last is not None and resume:
        checkpoint = read_checkpoint(last)
        snapshot.check_same_recipe(checkpoint, job, out)
        return checkpoint
    leftovers = [path for path in out.iterdir() if path.name != "recipe.yaml"] if out.is_dir() else []
    if leftovers and not resume and devices.is_first:
        raise CheckpointError(
            f"{out}: not empty ({leftovers[0].name} is there); name a new directory, or continue this run with --resume"
        )
    if devices.is_first:
        out.mkdir(parents=True, exist_ok=True)
        write_file(out / "recipe.yaml", yaml.safe_dump(dict(job.recipe), sort_keys=False, allow_unicode=True).encode())
    devices.wait()
    return None
