import json

import polars as pl
import pytest
import torch

from polytask.core.errors import CheckpointError, DataError, MissingInput
from polytask.tasks.data import DataSpec, load_data, read_inputs
from polytask.tasks.task import Task

tokenizers = pytest.importorskip("tokenizers", reason="needs transformers (extra text)")

WORDS = ["[PAD]", "[UNK]", "good", "bad", "film", "book", "a"]


@pytest.fixture
def tokenizer(tmp_path):
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    engine = tokenizers.Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    engine.pre_tokenizer = Whitespace()
    folder = tmp_path / "model"
    folder.mkdir()
    engine.save(str(folder / "tokenizer.json"))
    return str(folder)


@pytest.fixture
def load(tmp_path, tokenizer):
    texts = ["good film", "bad film", "a good book", "bad", "a bad book film"] * 12
    frame = pl.DataFrame({"text": texts, "label": [int("good" in text) for text in texts]})
    frame.write_csv(tmp_path / "mr.csv")
    frame.write_parquet(tmp_path / "cr.parquet")

    def loader(with_tokenizer=True, **options):
        features = {"text": {"kind": "text", **options}}
        sources = {"mr": {"table": "mr.csv"}, "cr": {"table": "cr.parquet"}}
        tasks = [Task(name=name, kind="binary", label="label") for name in sources]
        spec = DataSpec(sources=sources, split={"fractions": [0.5, 0.25, 0.25]}, features=features)
        return load_data(spec, tasks, data_dir=None, beside=tmp_path, tokenizer=tokenizer if with_tokenizer else None)

    return loader


def test_each_source_gives_token_ids_padded_by_batch(load):
    data = load()
    assert list(data.sources) == ["mr", "cr"]
    assert data.sources["mr"].schema.text
    inputs = data.sources["cr"].preprocessor.transform(
        pl.DataFrame({"text": ["good film", "", None, "a strange book"]})
    )
    index = torch.arange(4)
    assert inputs["input_ids"].padded(index).tolist() == [[2, 4, 0], [0, 0, 0], [0, 0, 0], [6, 1, 5]]
    assert inputs["attention_mask"].padded(index).tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 0], [1, 1, 1]]
    batch = data.sources["mr"].splits["train"].batch(range(3))
    assert batch.inputs["input_ids"].shape == batch.inputs["attention_mask"].shape


def test_long_texts_are_cut_and_counted(load):
    data = load(max_length=3)
    assert "12 of 60 texts are longer than 3 tokens" in data.remarks[0]


def test_the_tokenizer_travels_with_the_checkpoint(load, tmp_path):
    data = load()
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "inputs.json").write_text(json.dumps(data.to_json()))
    for name, content in data.extra_files().items():
        (folder / name).write_bytes(content)
    (tmp_path / "model" / "tokenizer.json").unlink()
    preprocessors, targets = read_inputs(folder)
    rows = pl.DataFrame({"text": ["a bad film"]})
    assert preprocessors["mr"].transform(rows)["input_ids"].values.tolist() == [6, 3, 4]
    assert list(targets) == ["mr", "cr"]
    (folder / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        read_inputs(folder)


def test_a_directory_without_a_tokenizer(load, tmp_path):
    with pytest.raises(MissingInput, match="needs a tokenizer"):
        load(with_tokenizer=False)
    (tmp_path / "model" / "tokenizer.json").unlink()
    with pytest.raises(DataError, match="no tokenizer there"):
        load()


def test_pairs_of_texts(load, tmp_path, tokenizer):
    frame = pl.DataFrame({"first": ["good film", "bad"] * 10, "second": ["a book", "film"] * 10, "same": [0, 1] * 10})
    frame.write_parquet(tmp_path / "pairs.parquet")
    spec = DataSpec(table="pairs.parquet", features={"first": {"kind": "text", "pair": "second"}})
    task = Task(name="same", kind="binary")
    data = load_data(spec, [task], data_dir=tmp_path, beside=None, tokenizer=tokenizer)
    preprocessor = data.sources["data"].preprocessor
    assert preprocessor.columns == ["first", "second"]
    assert preprocessor.transform(frame[:1])["input_ids"].values.tolist() == [2, 4, 6, 5]
