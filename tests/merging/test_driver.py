"""The driver: right numbers, the same bytes however it is run, and what it leaves behind when it cannot finish."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from merging.models import SHAPES, content, jobs, models, opened
from polytask.core.blocks import BLOCK
from polytask.core.errors import BadValue, CheckpointError, Inconsistent, MissingInput, NotFinite, UnknownName
from polytask.core.task_vectors import TaskVectors
from polytask.merging import passes
from polytask.merging.contract import find_method
from polytask.merging.driver import merge
from polytask.merging.jobs import Take
from polytask.merging.memory import apply

METHODS = ["linear", "task_arithmetic", "ties", "upgrad", "trimmed_mean", "graddrop"]


@pytest.fixture
def paths(tmp_path: Path) -> dict[str, Path]:
    return models(tmp_path / "models")


def tensors(directory: Path) -> dict[str, torch.Tensor]:
    return {name: value for file in sorted(directory.glob("*.safetensors")) for name, value in load_file(file).items()}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("method", METHODS)
def test_files_give_the_numbers_of_memory(method: str, dtype: torch.dtype, tmp_path: Path) -> None:
    paths = models(tmp_path / "models", dtype=dtype)
    weights, out = opened(paths), tmp_path / "out"
    report = merge(jobs(weights, method), out, seed=3, workers=2)
    base, *tuned = (load_file(path / "model.safetensors") for path in paths.values())
    pipeline = find_method(method)()
    stacks = {name: torch.stack([model[name].float() for model in tuned]) for name in base}
    if pipeline.of == "deltas":
        stacks = {name: stack - base[name].float() for name, stack in stacks.items()}
    layers = {name: name.rpartition(".")[0] for name in base}
    combined = apply(pipeline, TaskVectors(["a", "b", "c"], stacks), seed=3, groups=layers)
    found = load_file(out / "model.safetensors")
    assert list(weights["base"].names()) == [tensor.name for tensor in report.tensors]
    for name, value in combined.items():
        wanted = (base[name].float() + value if pipeline.of == "deltas" else value).to(dtype)
        assert torch.equal(found[name], wanted), name


def test_half_precision_is_rounded_once(paths: dict[str, Path], tmp_path: Path) -> None:
    """Against float64: the nearest bfloat16 in nearly every element, and the next one to it in the others."""
    merge(jobs(opened(paths), "task_arithmetic", scale=0.4), tmp_path / "out")
    base, *tuned = (load_file(path / "model.safetensors") for path in paths.values())
    for name, value in tensors(tmp_path / "out").items():
        exact = base[name].double() + 0.4 * sum(model[name].double() - base[name].double() for model in tuned)
        nearest = exact.bfloat16()
        apart = (value.view(torch.int16).int() - nearest.view(torch.int16).int()).abs()
        assert apart[exact.abs() > 1e-4].max() <= 1  # where the terms cancel, float32's own rounding is what is left
        assert (apart > 0).float().mean() < 0.001


@pytest.mark.parametrize("method", ["ties", "upgrad", "graddrop"])
def test_no_byte_depends_on_threads_spans_or_shards_memory(
    method: str, paths: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = opened(paths)
    merge(jobs(weights, method), tmp_path / "one", seed=1, workers=1)
    wanted = content(tmp_path / "one")
    for threads in (2, 5):
        merge(jobs(weights, method), tmp_path / "out", seed=1, workers=threads, memory=1)
        assert content(tmp_path / "out") == wanted
    for span in (1, 2, 1000):
        monkeypatch.setattr(passes, "SPAN", span)
        merge(jobs(weights, method), tmp_path / "out", seed=1, workers=2)
        found = tensors(tmp_path / "out")
        assert all(torch.equal(found[name], value) for name, value in tensors(tmp_path / "one").items())
    merge(jobs(weights, method), tmp_path / "shards", seed=1, workers=2, shard_size=50_000)
    found = tensors(tmp_path / "shards")
    assert all(torch.equal(found[name], value) for name, value in tensors(tmp_path / "one").items())


def test_shards_have_an_index_that_other_readers_understand(paths: dict[str, Path], tmp_path: Path) -> None:
    report = merge(jobs(opened(paths), "linear"), tmp_path / "out", shard_size=100_000, metadata={"made": "here"})
    index = json.loads((tmp_path / "out/model.safetensors.index.json").read_bytes())
    assert sorted(set(index["weight_map"].values())) == sorted(report.files)
    assert len(report.files) > 1
    assert index["metadata"]["total_size"] == sum(2 * torch.Size(shape).numel() for shape in SHAPES.values())
    for name, file in index["weight_map"].items():
        assert name in load_file(tmp_path / "out" / file)
    assert content(tmp_path / "out").keys() == {"model.safetensors.index.json", *report.files}


def test_mixed_types_and_what_is_taken_over(tmp_path: Path) -> None:
    kinds = {"f64": torch.float64, "f32": torch.float32, "f16": torch.float16, "f8": torch.float8_e4m3fn}
    values = {name: torch.linspace(-2, 2, 33, dtype=torch.float64).to(dtype) for name, dtype in kinds.items()}
    kept = {"steps": torch.tensor(7), "mask": torch.tensor([True, False, True])}
    for number, name in enumerate(("base", "a", "b")):
        (tmp_path / name).mkdir()
        scaled = {key: (value.double() * (1 + number / 2)).to(value.dtype) for key, value in values.items()}
        save_file({**scaled, **kept}, tmp_path / name / "model.safetensors")
    weights = opened({name: tmp_path / name for name in ("base", "a", "b")})
    merged = [job for job in jobs(weights, "task_arithmetic") if job.name in kinds]
    copied = [job for job in jobs(weights, Take(equal=True)) if job.name in kept]
    report = merge([*copied, *merged], tmp_path / "out")
    found = tensors(tmp_path / "out")
    assert all(torch.equal(found[name], value) for name, value in kept.items())
    assert {name: value.dtype for name, value in found.items() if name in kinds} == kinds
    # The base times 1 + 0.5 + 1.
    torch.testing.assert_close(found["f64"], 2.5 * values["f64"], rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(found["f16"], (2.5 * values["f16"].double()).half(), rtol=2e-3, atol=1e-3)
    assert [tensor.taken for tensor in report.tensors] == [True] * 2 + [False] * 4


def test_what_must_be_equal_and_is_not(tmp_path: Path) -> None:
    for name, steps in (("a", [1, 5]), ("b", [1, 6])):
        (tmp_path / name).mkdir()
        save_file({"steps": torch.tensor(steps)}, tmp_path / name / "model.safetensors")
    weights = opened({name: tmp_path / name for name in ("a", "b")})
    with pytest.raises(Inconsistent, match=r"'steps' is not merged .* at index 1 'a' has 5 and 'b' has 6"):
        merge(jobs(weights, Take(equal=True)), tmp_path / "out")
    merge(jobs(weights, Take()), tmp_path / "out")
    assert tensors(tmp_path / "out")["steps"].tolist() == [1, 5]


def test_what_is_reported(paths: dict[str, Path], tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    report = merge(jobs(opened(paths), "mgda"), tmp_path / "out", progress=lambda *at: seen.append(at))
    base, *tuned = (load_file(path / "model.safetensors") for path in paths.values())
    for tensor in report.tensors:
        stack = torch.stack([model[tensor.name].double() - base[tensor.name].double() for model in tuned]).flatten(1)
        assert tensor.norms == pytest.approx(stack.norm(dim=1).tolist(), rel=1e-5)
        cosine = torch.nn.functional.cosine_similarity(stack[:, None], stack[None], dim=-1)
        assert np.array(tensor.cosines) == pytest.approx(cosine.numpy(), abs=1e-5)
        first, second = stack[:2, :BLOCK]  # the models are so small that no other block is looked at
        both = (first != 0) & (second != 0)
        opposite = (first.sign() == -second.sign()) & both
        assert tensor.conflicts[0][1] == pytest.approx(float(opposite.sum() / both.sum()))
        assert tensor.base_norm == pytest.approx(float(base[tensor.name].double().norm()), rel=1e-5)
        assert sum(tensor.weights.values()) == pytest.approx(1)
        weights = torch.tensor(list(tensor.weights.values()), dtype=torch.float64)
        assert tensor.merged_norm == pytest.approx(float((weights @ stack).norm()), rel=1e-4)
    assert seen[-1][0] == seen[-1][1]
    assert seen == sorted(seen)


# --- what cannot be merged ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["linear", "ties", "upgrad"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_is_an_error_that_names_the_place(
    method: str, value: float, paths: dict[str, Path], tmp_path: Path
) -> None:
    file = paths["b"] / "model.safetensors"
    damaged = load_file(file)
    damaged["layers.0.weight"][290, 41] = value
    save_file(damaged, file)
    with pytest.raises(NotFinite, match=rf"b/model.safetensors: tensor 'layers.0.weight' is {value} at index 290041 "):
        merge(jobs(opened(paths), method), tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["models"]


def test_a_value_beyond_the_output_type_is_an_error(tmp_path: Path) -> None:
    paths = models(tmp_path / "models", dtype=torch.float32)
    with pytest.raises(NotFinite, match=r"beyond torch.float16; choose a wider output type"):
        merge(jobs(opened(paths), "task_arithmetic", dtype=torch.float16, scale=1e6), tmp_path / "out")


def test_bad_jobs_are_refused_before_anything_is_read(paths: dict[str, Path], tmp_path: Path) -> None:
    weights, out = opened(paths), tmp_path / "out"
    without = {name: found for name, found in weights.items() if name != "base"}
    with pytest.raises(MissingInput, match=r"rule 'task_arithmetic' .* name a base"):
        merge(jobs(without, "task_arithmetic"), out)
    with pytest.raises(UnknownName, match="no task 'd'"):
        merge(jobs(weights, find_method("task_arithmetic")(weights={"d": 1})), out)
    with pytest.raises(BadValue, match="number of tensors to merge"):
        merge([], out)
    with pytest.raises(BadValue, match=r"number of jobs for the tensor 'embed.weight' is 2"):
        merge([*jobs(weights, "linear"), *jobs(weights, "linear")], out)
    with pytest.raises(BadValue, match="workers is 0"):
        merge(jobs(weights, "linear"), out, workers=0)
    with pytest.raises(BadValue, match=r"rule 'slerp': the number of tasks is 3; allowed: 2"):
        merge(jobs({name: weights[name] for name in "abc"}, "slerp"), out)
    other = models(tmp_path / "other", tasks=1, shapes={**SHAPES, "norm.weight": (8,)})
    with pytest.raises(BadValue, match=r"other/a/model.safetensors: the shape of 'norm.weight' is \(8,\)"):
        merge(jobs({**weights, "d": opened(other)["a"]}, "linear"), out)
    assert not out.exists()


# --- what is left when it cannot finish ---------------------------------------------------------------------------


def test_an_output_that_was_there_is_replaced_whole(paths: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "model-00001-of-00002.safetensors").write_bytes(b"stale")
    merge(
        jobs(opened(paths), "linear"),
        out,
        files=lambda report, folder: {"notes/card.json": b"{}", "copy": Path(__file__)},
    )
    assert sorted(path.name for path in out.iterdir()) == ["copy", "model.safetensors", "notes"]
    assert (out / "copy").read_bytes() == Path(__file__).read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["models", "out"]


def test_a_full_disk_is_known_before_anything_is_written(
    paths: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights, usage = opened(paths), os.statvfs(tmp_path)
    too_small = type("usage", (), {"free": 1000, "total": usage.f_blocks, "used": 0})
    monkeypatch.setattr("polytask.merging.writer.shutil.disk_usage", lambda path: too_small)
    with pytest.raises(CheckpointError, match=r"the merge needs [\d,]+ bytes of disk, and 1,000 are free"):
        merge(jobs(weights, "linear"), tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["models"]


KILLED = """
import sys, time
from pathlib import Path
from merging.models import jobs, opened
from polytask.merging import driver, writer

finish = writer.ShardFile.finish
def slow(self, report):
    finish(self, report)
    print(self.shard.file, flush=True)
    time.sleep(float(sys.argv[3]))
writer.ShardFile.finish = slow
paths = {name: Path(sys.argv[1]) / "models" / name for name in ("base", "a", "b", "c")}
out = Path(sys.argv[1]) / sys.argv[2]
report = driver.merge(jobs(opened(paths), "ties"), out, seed=5, workers=1, shard_size=50_000)
print("kept", report.shards_kept)
"""


def run(folder: Path, out: str, seconds: float, **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", KILLED, str(folder), out, str(seconds)]
    tests = Path(__file__).resolve().parent.parent
    path = os.pathsep.join([str(tests), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path, **environment}
    )


def test_a_killed_merge_goes_on_where_it_was(paths: dict[str, Path], tmp_path: Path) -> None:
    """Killed once a shard is finished; the same call keeps it, and the bytes are those of a run without a stop.

    The two whole runs have other hash seeds, which must not show either.
    """
    process = run(tmp_path, "out", 60)
    assert process.stdout is not None
    first = process.stdout.readline().strip()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    working = tmp_path / ".unfinished-out-merge"
    assert not (tmp_path / "out").exists()
    assert (working / first).exists()
    before = (working / first).stat().st_mtime_ns
    again = run(tmp_path, "out", 0, PYTHONHASHSEED="1").communicate()[0].splitlines()
    straight = run(tmp_path, "straight", 0, PYTHONHASHSEED="2").communicate()[0].splitlines()
    assert again[-1] == "kept 1"
    assert straight[-1] == "kept 0"
    assert first not in again[:-1]
    assert (tmp_path / "out" / first).stat().st_mtime_ns == before
    assert content(tmp_path / "out") == content(tmp_path / "straight")
    assert not working.exists()


def test_another_merge_to_the_same_place_starts_anew(paths: dict[str, Path], tmp_path: Path) -> None:
    process = run(tmp_path, "out", 60)
    assert process.stdout is not None
    process.stdout.readline()
    weights = opened(paths)
    with pytest.raises(CheckpointError, match="another merge is writing to it"):
        merge(jobs(weights, "ties"), tmp_path / "out", seed=5, shard_size=50_000)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    report = merge(jobs(weights, "ties"), tmp_path / "out", seed=6, shard_size=50_000)
    assert report.shards_kept == 0
    merge(jobs(weights, "ties"), tmp_path / "straight", seed=6, shard_size=50_000)
    assert content(tmp_path / "out") == content(tmp_path / "straight")


def test_a_file_that_cannot_have_its_room(paths: dict[str, Path], tmp_path: Path) -> None:
    """A file may not grow beyond the limit: one error, and nothing left."""
    code = KILLED.replace(
        "report = ",
        "import resource, signal\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\nreport = ",
    )
    command = [sys.executable, "-c", code, str(tmp_path), "out", "0"]
    path = os.pathsep.join([str(Path(__file__).resolve().parent.parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path})
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert "out: could not be written (File too large)" in last
    assert not (tmp_path / "out").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["models"]  # room is taken first, so nothing was done
