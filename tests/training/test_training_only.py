"""Tasks with the role training_only: trained, scored, kept for resuming, and gone from saved models."""

from pathlib import Path
from typing import Any

import pytest
from tests.training.runs import outcome, recipe, table, train, weights

import polytask
from polytask.checkpoints import read_checkpoint, resolve
from polytask.core.errors import UnknownName

TASKS = {"click": "binary", "buy": {"kind": "binary", "role": "training_only"}, "topic": "multiclass"}


@pytest.mark.parametrize("every", ["evaluation", "end"])
def test_a_saved_model_is_one_that_never_had_the_task(every: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"model__sharing": "cgc", "tasks": TASKS, "train__checkpoint_every": every}
    found = train(tmp_path / "run", **settings)
    assert set(found["test"]) == {"click", "buy", "topic"}
    few = {name: task for name, task in TASKS.items() if name != "buy"}
    train(tmp_path / "few", **{**settings, "tasks": few, "data__drop": ["buy"]})
    assert weights(tmp_path / "run").keys() == weights(tmp_path / "few").keys()
    directory = read_checkpoint(resolve(tmp_path / "run"))
    assert list(directory.config["outputs"]) == list(directory.card["tasks"]) == ["click", "topic"]
    assert directory.card["parameters"] == read_checkpoint(resolve(tmp_path / "few")).card["parameters"]
    model = polytask.load(tmp_path / "run")
    assert [name.split(".")[0] for name in model.predict(table()).columns] == ["click", *["topic"] * 4]
    with pytest.raises(UnknownName, match="no task 'buy'"):
        model.predict(table(), ["buy"])


def test_a_resumed_run_has_its_training_only_tasks_back(tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    def kill(event: dict[str, Any]) -> None:
        if event["event"] == "step" and event["step"] == 5:
            raise Killed

    settings: dict[str, Any] = {"tasks": TASKS, "train__checkpoint_every": 1}
    train(tmp_path / "straight", **settings)
    with pytest.raises(Killed):
        train(tmp_path / "killed", listeners=[kill], **settings)
    assert not (tmp_path / "killed" / "results.json").exists()
    train(tmp_path / "killed", resume=True, **settings)
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "straight")


@pytest.mark.parametrize(
    "sharing", [{"kind": "cross_stitch", "hidden_sizes": [4]}, {"kind": "aitm", "hidden_sizes": [4]}]
)
def test_what_the_others_read_of_it_stays(sharing: dict[str, Any], tmp_path: Path) -> None:
    """A saved model without it predicts what the whole one does: its tower is there, its head is not."""
    auxiliary = {**TASKS, "buy": {"kind": "binary", "role": "auxiliary"}}
    train(tmp_path / "run", tasks=TASKS, model__sharing=sharing)
    train(tmp_path / "whole", tasks=auxiliary, model__sharing=sharing)
    saved, whole = weights(tmp_path / "run"), weights(tmp_path / "whole")
    assert whole.keys() - saved.keys() == {"heads.buy.output.weight", "heads.buy.output.bias"}
    rows, staying = table(), ["click", "topic"]
    found = polytask.load(tmp_path / "run").predict(rows)
    assert found.equals(polytask.load(tmp_path / "whole").predict(rows, staying))


def test_alone_it_is_saved(tmp_path: Path) -> None:
    """A baseline of that task."""
    train(tmp_path, tasks={"buy": TASKS["buy"]})
    assert polytask.load(tmp_path).predict(table()).columns == ["buy"]
    assert recipe(tasks=TASKS)["tasks"] == TASKS
