from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import polytask
from merging.families import write_family
from polytask.checkpoints import verify_checkpoint
from polytask.core.errors import PolytaskError
from polytask.merging import recalibrate_batchnorm, replace_tensors


def model() -> nn.Module:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))
    network[1].running_mean.fill_(9.0)
    return network.eval()


def test_statistics_are_those_of_the_batches() -> None:
    network = model()
    batches = [torch.randn(50, 3, generator=torch.Generator().manual_seed(seed)) for seed in range(4)]
    before = {name: value.clone() for name, value in network.named_parameters()}
    assert recalibrate_batchnorm(network, batches) == ["1"]
    hidden = [network[0](batch) for batch in batches]
    torch.testing.assert_close(network[1].running_mean, torch.stack([h.mean(0) for h in hidden]).mean(0))
    torch.testing.assert_close(network[1].running_var, torch.stack([h.var(0) for h in hidden]).mean(0))
    assert (network[1].momentum, network.training, network[1].training) == (0.1, False, False)
    assert all(torch.equal(value, before[name]) for name, value in network.named_parameters())


def test_a_callable_passes_the_batches_through() -> None:
    network, one = model(), model()
    batch = torch.randn(20, 3)
    recalibrate_batchnorm(network, [{"x": batch}], lambda network, batch: network(batch["x"]))
    recalibrate_batchnorm(one, [batch])
    assert torch.equal(network[1].running_mean, one[1].running_mean)


def test_no_batch_is_an_error_and_no_batchnorm_is_nothing_to_do() -> None:
    with pytest.raises(PolytaskError, match="needs at least one batch"):
        recalibrate_batchnorm(model(), [])
    assert recalibrate_batchnorm(nn.Linear(2, 2), []) == []


def test_tensors_of_a_merge_are_replaced_and_its_card_follows(tmp_path: Path) -> None:
    write_family(tmp_path)
    plan = {"base": str(tmp_path / "base"), "tasks": {"a": str(tmp_path / "a")}, "rule": "task_arithmetic"}
    polytask.merge(plan, out=tmp_path / "out")
    before = load_file(tmp_path / "out" / "model.safetensors")
    replace_tensors(tmp_path / "out", {"model.norm.weight": torch.arange(4.0)})
    after = load_file(tmp_path / "out" / "model.safetensors")
    assert after["model.norm.weight"].tolist() == [0, 1, 2, 3]
    assert all(torch.equal(after[name], before[name]) for name in before if name != "model.norm.weight")
    verify_checkpoint(tmp_path / "out")
    with pytest.raises(PolytaskError, match=r"no tensor 'norm.weight' \(did you mean 'model.norm.weight'\?\)"):
        replace_tensors(tmp_path / "out", {"norm.weight": torch.arange(4.0)})
    with pytest.raises(PolytaskError, match=r"shape of 'model.norm.weight' is \(5,\); allowed: \(4,\)"):
        replace_tensors(tmp_path / "out", {"model.norm.weight": torch.arange(5.0)})
