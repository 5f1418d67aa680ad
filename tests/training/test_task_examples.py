"""Before the first step, gates that choose by examples get what the tasks' training rows say."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.training.runs import assert_resumes, job, table, train, weights
from torch import Tensor

import polytask
from polytask.checkpoints import read_checkpoint, resolve
from polytask.core.errors import DataError
from polytask.core.noise import Noise

SHARING = {"kind": "mmoe", "experts": 3, "hidden_sizes": [4], "gate": {"reads": "examples", "embedding": 5}}
QUICK: dict[str, Any] = {"model__sharing": SHARING, "train__epochs": 1}


def vectors(run: Path) -> dict[str, Tensor]:
    """task -> its embedding."""
    tensors, place = read_checkpoint(resolve(run)).tensors(), "sharing.gates.embeddings."
    return {name.split(".")[3]: tensor for name, tensor in tensors.items() if name.startswith(place)}


def test_a_vector_is_the_projected_correlations_over_the_labelled_training_rows(tmp_path: Path) -> None:
    train(tmp_path, **QUICK)
    start = job(**QUICK, train__seed=0).build().eval()  # the seed that the encoder reads examples with
    rows = job(**QUICK).data.sources["data"].splits["train"]
    with torch.no_grad():
        encodings = start.representation(rows.inputs).double().numpy()
    found = vectors(tmp_path)
    assert set(found) == {"click", "buy", "topic", "price"}
    for task, vector in found.items():
        known = rows.present[task].numpy()
        assert known.all() == (task in ("click", "topic"))
        read, labels = encodings[known], rows.labels[task].numpy()[known]
        expected = np.zeros(5)
        for number, target in enumerate([labels == k for k in range(3)] if task == "topic" else [labels]):
            varying = read.std(0) > 0  # a unit of the encoder may be 0 in every row
            correlations = np.zeros(8)
            correlations[varying] = np.corrcoef(read[:, varying].T, target)[-1, :-1]
            matrix = Noise(0, "example embedding", number).normal(8 * 5).reshape(8, 5)
            expected += correlations @ matrix
        assert vector.numpy() == pytest.approx(expected / np.linalg.norm(expected), rel=1e-5, abs=1e-6)


def test_the_vectors_depend_on_no_seed_and_stay_while_the_rest_learns(tmp_path: Path) -> None:
    for seed in (0, 0, 1):
        train(tmp_path / f"{seed}", resume=True, **QUICK, train__seed=seed)
    first, other = vectors(tmp_path / "0"), vectors(tmp_path / "1")
    assert all(torch.equal(first[task], other[task]) for task in first)
    train(tmp_path / "again", **QUICK)
    assert weights(tmp_path / "again") == weights(tmp_path / "0")
    learned = {**SHARING, "gate": {**SHARING["gate"], "learned": True}}
    train(tmp_path / "learned", **{**QUICK, "model__sharing": learned})
    moved = vectors(tmp_path / "learned")
    assert all(0 < (moved[task] - first[task]).abs().max() < 0.2 for task in first)


def test_predictions_need_no_examples_and_a_resumed_run_reads_none_again(tmp_path: Path) -> None:
    assert_resumes(tmp_path, 3, **QUICK)
    inputs = {name: column for name, column in table(9, seed=3).items() if name.startswith("x") or name == "kind"}
    assert polytask.load(tmp_path / "broken").predict(inputs).height == 9


def test_a_task_that_joins_a_trained_model_gets_the_vector_that_it_had_from_the_start(tmp_path: Path) -> None:
    train(tmp_path / "joint", **QUICK)
    tasks = {"click": "binary", "price": "regression"}
    rows = {**QUICK, "data__drop": ["buy", "topic"]}
    train(
        tmp_path / "first", **rows, tasks={"click": "binary"}, data={k: v for k, v in table().items() if k != "price"}
    )
    train(tmp_path / "both", **rows, tasks=tasks, model__init_from=str(tmp_path / "first"), train__seed=4)
    joint, both = vectors(tmp_path / "joint"), vectors(tmp_path / "both")
    assert {task: vector.tolist() for task, vector in both.items()} == {task: joint[task].tolist() for task in tasks}


def test_a_task_without_a_label(tmp_path: Path) -> None:
    rows = {**table(), "empty": np.full(len(table()["click"]), np.nan)}
    tasks = {"click": "binary", "empty": "binary"}
    with pytest.raises(DataError, match="task 'empty': no training row has a label, and its gates read labelled"):
        train(
            tmp_path / "run",
            **QUICK,
            tasks=tasks,
            data=rows,
            data__drop=["buy", "topic", "price"],
            data__degenerate="keep",
        )
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_gates_of_a_census_choose_by_its_examples(tmp_path: Path, data_dir: Path) -> None:
    use = {}
    for reads in ("embedding", "examples"):
        settings = {"data.rows": 2000, "train.epochs": 1, "model.sharing": {**SHARING, "gate": {"reads": reads}}}
        results = polytask.train("census_income", out=tmp_path / reads, data_dir=data_dir, settings=settings)
        use[reads] = results["gates"]["experts"]["use"]
    found = vectors(tmp_path / "examples")
    cosine = torch.cosine_similarity(found["income"], found["never_married"], dim=0).item()
    assert cosine < -0.2  # who never married is young and earns little
    assert use["examples"] != use["embedding"]
    assert use["examples"]["income"] != pytest.approx(use["examples"]["never_married"], abs=1e-3)
