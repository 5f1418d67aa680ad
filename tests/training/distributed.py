"""What each process of the distribution test does: `torchrun distributed.py OUT`, or `run_all(OUT)` in one process."""

import hashlib
import json
import random
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as distributed

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.training.runs import recipe, table

import polytask
import polytask.training.loop as loop
from polytask.core.noise import Noise

SGD = {"train__optimizer": {"kind": "sgd", "lr": 0.1, "momentum": 0.5}, "train__epochs": 2}
CONV = {"kind": "conv", "channels": [3], "width": 6, "normalization": "batch"}


def images() -> dict[str, Any]:
    noise = Noise(0, "images")
    pixels = noise.uniform(96 * 36).reshape(96, 6, 6).astype(np.float32)
    return {"image": pixels, "left": (pixels[:, :, :3].sum((1, 2)) > 9).astype(int), "whole": pixels.sum((1, 2))}


def rare() -> dict[str, Any]:
    """One task has six labels, so most batches lack it, and in the others one of two processes does."""
    rows = table()
    seldom = np.full(len(rows["click"]), np.nan)
    seldom[::27] = np.arange(len(seldom[::27])) % 2
    return {**rows, "buy": seldom}


def cases() -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """name -> (data, recipe)."""
    conv = {
        "tasks": {"left": "binary", "whole": "regression"},
        "model__encoder": CONV,
        "data__features": {"image": {"kind": "image"}},
        "train__batch_size": 13,
    }
    sources = {
        "data": {"split": {"fractions": [0.6, 0.2, 0.2], "seed": 0}},
        "train__batch_size": 11,
        "train__epochs": 1,
        "tasks": {"click": {"kind": "binary", "source": "big"}, "topic": {"kind": "multiclass", "source": "small"}},
    }
    big = {key: values for key, values in table(160).items() if key not in ("topic", "buy", "price")}
    small = {key: values for key, values in table(30, seed=1).items() if key not in ("click", "buy", "price")}
    return {
        "equal, labels unevenly spread": ({"data": rare()}, recipe(**SGD)),
        "upgrad, labels unevenly spread": ({"data": rare()}, recipe(**SGD, train__rule="upgrad")),
        "equal, batch normalization": ({"data": images()}, recipe(**SGD, **conv)),
        "upgrad, batch normalization": ({"data": images()}, recipe(**SGD, **conv, train__rule="upgrad")),
        "two sources, one row of one of them": ({"big": big, "small": small}, recipe(**{**SGD, **sources})),
        "rotograd, labels unevenly spread": (
            {"data": rare()},
            recipe(**SGD, train__attachments=[{"kind": "rotograd", "learning_rate": 0.01}, "covariance_alignment"]),
        ),
        "sharpness_aware, labels unevenly spread": (
            {"data": rare()},
            recipe(**SGD, train__rule={"kind": "sharpness_aware", "inner": "upgrad"}),
        ),
        "auto_lambda, batch normalization": (
            {"data": images()},
            recipe(**SGD, **conv, train__rule={"kind": "auto_lambda", "learning_rate": 0.01}),
        ),
        "dense to sparse, labels unevenly spread": (
            {"data": rare()},
            recipe(**SGD, model__sharing={"kind": "mmoe", "experts": 3, "gate": {"select": SPARSER}}),
        ),
        "pcgrad, saved at each step": ({"data": table()}, recipe(**SGD, train__rule="pcgrad", **SAVING)),
    }


SPARSER = {"kind": "dense_to_sparse", "begin": 2, "end": 9}
SAVING = {"train__checkpoint_every": 1, "train__keep": 100}


def run_all(out: Path) -> dict[str, Any]:
    """Trains every case; returns what this process saw."""
    replicas: dict[str, str] = {}
    finish = loop._Session.finish
    name = ""

    def finish_and_note(session: Any) -> Any:
        digest = hashlib.sha256()
        for tensor in session.model.state_dict().values():
            digest.update(tensor.numpy().tobytes())
        replicas[name] = digest.hexdigest()
        return finish(session)

    loop._Session.finish = finish_and_note
    try:
        for name, (data, values) in cases().items():
            polytask.train(values, out=out / name, data=data)
    finally:
        loop._Session.finish = finish
    return {"replicas": replicas, "started": distributed.is_initialized()}


def resumed(out: Path) -> str:
    """The last case again from its third step."""
    (name, (data, values)) = list(cases().items())[-1]
    if distributed.get_rank() == 0:
        shutil.copytree(out / name, out / "resumed", symlinks=True)
        (out / "resumed" / "last").unlink()
        (out / "resumed" / "last").symlink_to("checkpoints/step-3")
        (out / "resumed" / "results.json").unlink()
    distributed.barrier()
    polytask.train(values, out=out / "resumed", data=data, resume=True)
    return name


def refused(out: Path) -> str:
    """An error that only the first process can find reaches every process."""
    data, values = cases()["equal, labels unevenly spread"]
    try:
        polytask.train(values, out=out / "refused", data=data)
    except polytask.PolytaskError as error:
        return str(error)
    return "none"


if __name__ == "__main__":
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    seen = run_all(folder)  # imports all that there is: some packages draw from Python's generator then
    before = random.getstate()
    seen |= {"resumed": resumed(folder), "refused": refused(folder), "threads": torch.get_num_threads()}
    seen["random_state_stays"] = random.getstate() == before
    (folder / f"rank-{distributed.get_rank()}.json").write_text(json.dumps(seen))
