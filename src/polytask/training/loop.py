"""The one loop: a run is its stages, each a sequence of steps with evaluations and checkpoints in between."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from polytask.checkpoints import Checkpoint, point, pointed, read_checkpoint, update_card
from polytask.checkpoints.directory import json_bytes, write_file
from polytask.core.errors import NotFinite
from polytask.evaluation.gates import gate_report
from polytask.evaluation.scores import evaluate, outputs_on, selection_score
from polytask.tasks.examples import Batch
from polytask.training import snapshot
from polytask.training.batchnorm import synchronize_batchnorm
from polytask.training.devices import Devices
from polytask.training.events import EventLog, Listener
from polytask.training.features import FeatureCache, FrozenFeatures
from polytask.training.job import Job
from polytask.training.memory import start_measuring
from polytask.training.results import run_results
from polytask.training.snapshot import Progress
from polytask.training.stage import Stage
from polytask.training.task_examples import read_unread

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
        resume: continue from RUN/last, or start if there is none; a run that is done is left as it is.
        listeners: called with every event.
        features: frozen encoders' outputs shared between runs on the same rows.
    """
    out = Path(out)
    devices = Devices(job.run)
    found = devices.on_first(lambda: snapshot.found(out, job, resume))
    if found.results is not None:
        return found.results
    last = None if found.last is None else read_checkpoint(found.last)
    state = None if last is None else last.state()
    with devices.settings(state["threads"] if state else None):
        session = _Session(job, out, devices)
        if last is not None and state is not None:
            session.restore(last, state)
        session.read_rows({} if features is None else features)
        # all that can be wrong with the recipe has been found now, and nothing is written yet
        devices.on_first(lambda: snapshot.begin(out, job, state["events"] if state else 0))
        with EventLog(out / snapshot.EVENTS if devices.is_first else None, listeners) as events:
            session.train(events)
            return session.finish()


def check(job: Job, features: FeatureCache) -> None:
    """Finds what is wrong with a job as `fit` does before its first step, and writes nothing.

    Args:
        features: as of `fit`; what is computed here is there for the runs.
    """
    devices = Devices(job.run)
    with devices.settings(None):
        _Session(job, Path(), devices).read_rows(features)


def _numbers(tasks: Sequence[str], values: torch.Tensor) -> dict[str, float | None]:
    """task -> number, null where there is none."""
    return {task: None if value != value else value for task, value in zip(tasks, values.tolist(), strict=True)}


class _Session:
    """A run in progress; `fit` makes one and calls its methods in their order."""

    def __init__(self, job: Job, out: Path, devices: Devices) -> None:
        self.job, self.out, self.devices = job, out, devices
        start_measuring(devices.device)
        self.progress = Progress()
        self.model = job.build()
        self._learnable = [name for name, parameter in self.model.named_parameters() if parameter.requires_grad]
        if job.run.sync_batchnorm and devices.world > 1:
            synchronize_batchnorm(self.model)
        self.model.to(devices.device)
        self._stage: Stage | None = None
        self._without = snapshot.stripped(job, self.model)
        self._remarks = list(job.data.remarks)
        self._stage_state: Any = None  # of the stage that a resumed run is in
        self._best_tensors: dict[str, torch.Tensor] = {}  # where no checkpoint keeps the best model
        self._valid: dict[str, Any] = {}

    def restore(self, last: Checkpoint, state: Mapping[str, Any]) -> None:
        """Continues where a checkpoint was written."""
        self.model.load_state_dict(snapshot.whole(last))
        self.progress = Progress(**state["progress"])
        self._stage_state = state["stage"]
        if state["torch"] != torch.__version__:
            now = f"resumed by {torch.__version__}: the last bits may differ"
            self._remarks.append(f"saved by torch {state['torch']}, {now}")

    def read_rows(self, features: FeatureCache) -> None:
        """The rows of the run's sources, with the outputs of frozen layers where the model offers them."""
        job = self.job
        self._frozen = FrozenFeatures(self.model, self.devices, features, job.run.feature_cache_mb)
        sources = {name: source for name, source in job.data.sources.items() if set(source.tasks) & set(job.tasks)}
        self._train_rows = self._frozen.rows({name: source.splits["train"] for name, source in sources.items()})
        self._valid_rows = self._frozen.rows({name: source.splits["valid"] for name, source in sources.items()})
        self._test_splits = {name: source.splits["test"] for name, source in sources.items() if "test" in source.splits}
        self._remarks += self._frozen.remarks
        read_unread(job, self.model, self.devices)
        for index in range(len(job.stages)):  # a mistake in a later stage is reported before the first one begins
            self._new_stage(index)

    def train(self, events: EventLog) -> None:
        self.events = events
        progress, stages = self.progress, self.job.stages
        if progress.step == 0:
            names = [stage.name for stage in stages]
            self._event("start", tasks=self.job.tasks, stages=names, processes=self.devices.world)
        for remark in self._remarks:
            self._event("message", text=remark)
        for index in range(progress.stage, len(stages)):
            self._stage = stage = self._new_stage(index)
            if self._stage_state is not None:
                stage.load_state_dict(self._stage_state)
                self._stage_state = None
                if stage.chosen_engine is not None:
                    self._write_choice(stage.chosen_engine, is_new=False)
            else:
                stage.begin()
            reason = self._run_stage(stage)
            self._event("stop", reason=reason, stage_steps=progress.stage_step)
            if index + 1 < len(stages):
                progress.next_stage()

    def _new_stage(self, index: int) -> Stage:
        rows, validation = self._train_rows, self._valid_rows
        return Stage(self.job, index, self.model, self._learnable, rows, validation, self.devices)

    def _run_stage(self, stage: Stage) -> str:
        progress = self.progress
        self.model.train()
        stops = self._stops_early(stage)  # a run resumed at the evaluation that ended the stage
        while progress.stage_step < stage.steps and not stops:
            for pieces in stage.batches(progress.stage_step):
                self._step(stage, pieces)
                ended = progress.stage_step >= stage.steps
                if stage.ends_epoch(progress.stage_step):
                    stage.balancer.after_epoch()
                if ended or self._evaluation_due(stage):
                    is_best = self._evaluate(stage)
                    stops = self._stops_early(stage)
                    self._keep(stage, is_best, evaluated=True, ended=ended or stops)
                else:
                    self._keep(stage, is_best=False, evaluated=False, ended=False)
                if ended or stops:
                    break
        return "early stopping" if stops else "all steps done"

    def _step(self, stage: Stage, pieces: list[Batch]) -> None:
        progress = self.progress
        started = time.perf_counter()
        try:
            report = stage.train(pieces, progress.stage_step)
        except NotFinite as error:
            raise self._not_finite(stage, error) from error
        progress.seconds += time.perf_counter() - started
        rate = stage.learning_rate(progress.stage_step)
        progress.stage_step += 1
        progress.step += 1
        if stage.chosen_engine is not None:
            self._write_choice(stage.chosen_engine, is_new=True)
        if progress.step % self.job.run.log_every != 0 and progress.step != 1:
            return
        values: dict[str, Any] = {"losses": {}, "weights": {}}  # no row of the step has a label
        if report is not None:
            values = {"losses": report.losses, "weights": report.weights}
            if report.measured:
                values["measured"] = {what: _numbers(report.tasks, of) for what, of in report.measured.items()}
            if report.cosines is not None:
                table = [[None if value != value else value for value in row] for row in report.cosines.tolist()]
                values["cosines"] = {"tasks": report.tasks, "values": table}
            if terms := stage.terms:
                values["terms"] = terms
        self._event("step", **values, learning_rate=rate, of=stage.steps)

    def _write_choice(self, chosen: str, *, is_new: bool) -> None:
        """What the timing of the stage's engine has found, into the run's recipe."""
        index = self.progress.stage
        if self.job.stages[index].rule.engine.chosen is None:
            self.job = self.job.with_chosen_engine(index, chosen)
            self.devices.on_first(lambda: snapshot.write_recipe(self.out, self.job))
            if is_new:
                self._event("message", text=f"engine auto, tuned: {chosen!r} was the fastest")

    def _not_finite(self, stage: Stage, error: NotFinite) -> NotFinite:
        """The error with the run's step, after the row numbers of the batch are saved."""
        progress, path = self.progress, self.out / snapshot.NOT_FINITE
        step = progress.step + 1
        # the rule counts its own calls, from 0 in each stage
        what = str(error).replace(f"at step {stage.balancer.step}", f"at step {step}")
        if self.devices.is_first:
            rows = stage.rows(progress.stage_step)
            write_file(path, json_bytes({"step": step, "stage": stage.spec.name, "error": what, "rows": rows}))
        return NotFinite(
            f"{what}; the batch's row numbers are in {path}, and what was saved before is kept; "
            "a lower learning rate, clip or another label scale may help"
        )

    def _evaluation_due(self, stage: Stage) -> bool:
        every = self.job.run.evaluate_every
        return stage.ends_epoch(self.progress.stage_step) if every is None else self.progress.step % every == 0

    def _evaluate(self, stage: Stage) -> bool:
        """Scores the validation split; True if the score is the run's best so far."""
        job, progress = self.job, self.progress
        try:
            with self.devices.autocast():
                self._valid, losses = evaluate(self.model, self._valid_rows, job.targets, EVALUATION_BATCH)
        except NotFinite as error:
            raise NotFinite(f"evaluation after step {progress.step}: {error}; what was saved before is kept") from error
        selection = selection_score(self._valid, job.targets)
        score = self.devices.on_first(lambda: selection.value)  # replicas on accelerators may differ in the last bit
        early = stage.spec.early_stopping
        is_best = progress.see(score, self._valid, 0.0 if early is None else early.least_gain)
        self._event(
            "evaluate",
            split="valid",
            metrics=self._valid,
            losses=losses,
            score=score,
            undefined=selection.left_out,
            best=is_best,
        )
        return is_best

    def _stops_early(self, stage: Stage) -> bool:
        early = stage.spec.early_stopping
        return early is not None and self.progress.since_best >= early.patience

    def _keep(self, stage: Stage, is_best: bool, *, evaluated: bool, ended: bool) -> None:
        """Saves a checkpoint if one is due."""
        every = self.job.run.checkpoint_every
        if every == "end":
            if is_best:
                self._best_tensors = {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()}
        elif is_best or ended or (evaluated if every == "evaluation" else self.progress.step % every == 0):
            self.devices.on_first(lambda: self._save(stage, is_best))

    def _save(self, stage: Stage, is_best: bool) -> None:
        job, progress = self.job, self.progress
        self._event("checkpoint", best=is_best)
        state = snapshot.session_state(progress, stage.state_dict(), self.events.position(), job.run.deterministic)
        metrics = snapshot.main_metrics(job, {"valid": self._valid} if is_best else {})
        card = snapshot.card(job, self.model, progress.step, metrics, self._without)
        path = snapshot.save(self.out, job, self.model, card, state, self._without)
        snapshot.keep(self.out, path, is_best, job.run.keep)

    def finish(self) -> dict[str, Any]:
        """Scores the best model on the test split, once, and writes its final card and results.json."""
        job, progress = self.job, self.progress
        best = pointed(self.out, "best")
        if not self._best_tensors:
            assert best is not None
            self._best_tensors = snapshot.whole(read_checkpoint(best))
        self.model.load_state_dict(self._best_tensors)
        test, by_source = self._tested()
        with self.devices.autocast():
            gates = gate_report(self.model, self._valid_rows, job.targets, EVALUATION_BATCH)
        results = run_results(job, self.model, progress, test, gates, self.devices.device, by_source)
        scores = {"valid": progress.best_valid, **({"test": test} if test else {})}

        def write() -> dict[str, Any]:
            metrics = snapshot.main_metrics(job, scores)
            if best is not None:
                update_card(best, {"metrics": metrics})
            else:
                card = snapshot.card(job, self.model, progress.best_step, metrics, self._without)
                point(self.out, "best", snapshot.save(self.out, job, self.model, card, None, self._without))
            write_file(self.out / snapshot.RESULTS, json_bytes(results))
            return results

        return self.devices.on_first(write)

    def _tested(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """task -> metric -> value, of the tasks whose source has a test split; task -> source -> metric -> value of
        those that several sources have labels of."""
        tasks = [task for name in self._test_splits for task in self.job.data.sources[name].tasks]
        targets = {task: target for task, target in self.job.targets.items() if task in tasks}
        if not targets:
            return {}, {}
        with self.devices.autocast():
            found = outputs_on(self.model, self._frozen.rows(self._test_splits), targets, EVALUATION_BATCH)
        return found.metrics(), found.by_source()

    def _event(self, event: str, **values: Any) -> None:
        progress, stage = self.progress, self._stage
        self.events.write(
            event,
            step=progress.step,
            epoch=0 if stage is None else stage.epoch(progress.stage_step),
            stage_step=progress.stage_step,
            stage=self.job.stages[progress.stage].name,
            seconds=round(progress.seconds, 4),
            **values,
        )
