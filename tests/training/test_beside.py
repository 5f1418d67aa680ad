"""What an architecture learns by and is no part of: trained with a stage, resumed, and not saved with the model."""

from pathlib import Path
from typing import Any

import torch
from tests.training.runs import assert_resumes, recipe, table

import polytask
from polytask.checkpoints import read_checkpoint, resolve

MASKS = {"kind": "modality_masks", "layers": 1, "heads": 2, "modalities": [2, 3]}
MODEL: dict[str, Any] = {"encoder": {"kind": "columns", "width": 8}, "sharing": MASKS}


def trained(out: Path, strength: float = 1.0, **settings: Any) -> dict[str, torch.Tensor]:
    model = {**MODEL, "sharing": {**MASKS, "reconstruct": {"strength": strength, "width": 8, "heads": 2}}}
    given = {"model": model, "train__epochs": None, "train__steps": 4, **settings}
    polytask.train(recipe(**given), out=out, data={"data": table()})
    return read_checkpoint(resolve(out)).tensors()


def test_decoders_change_the_model_and_are_not_saved_with_it(tmp_path: Path) -> None:
    without, with_term = (trained(tmp_path / str(strength), strength) for strength in (0.0, 1.0))
    assert without.keys() == with_term.keys()
    assert not torch.equal(without["sharing.encoder.weight"], with_term["sharing.encoder.weight"])
    assert polytask.load(tmp_path / "1.0").predict(table()).height == 160


def test_a_resumed_run_has_its_decoders_back(tmp_path: Path) -> None:
    assert_resumes(tmp_path, 3, model=MODEL, train__epochs=None, train__steps=5)
