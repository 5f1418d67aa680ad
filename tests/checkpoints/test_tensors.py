"""Tensors and nested state in safetensors files."""

import pytest
import torch

from polytask.checkpoints.tensors import read_state, read_tensors, state_bytes, tensor_bytes
from polytask.core.errors import CheckpointError


def test_tensors_come_back_with_their_bits(tmp_path):
    tensors = {
        "double": torch.tensor([1 / 3, -0.0, float("inf"), float("nan")], dtype=torch.float64),
        "half": torch.tensor([[0.1, 2.0]], dtype=torch.bfloat16),
        "whole": torch.tensor(-7),
        "flags": torch.tensor([True, False]),
        "empty": torch.zeros(0, 3),
        "strided": torch.arange(6.0).reshape(2, 3).T,
    }
    (tmp_path / "t").write_bytes(tensor_bytes(tensors))
    found = read_tensors(tmp_path / "t")
    assert {name: (tensor.dtype, tensor.shape) for name, tensor in found.items()} == {
        name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()
    }
    for name, tensor in tensors.items():
        assert found[name].contiguous().numel() == tensor.numel()
        bits = [x.contiguous().flatten().view(torch.uint8).tolist() for x in (found[name], tensor) if x.numel()]
        assert bits in ([], [bits[0], bits[0]] if bits else [])


def test_tied_weights_are_stored_once_and_stay_tied(tmp_path):
    weight = torch.randn(100, 10, generator=torch.Generator().manual_seed(0))
    content = tensor_bytes({"embedding": weight, "head": weight, "other": weight.clone()})
    assert len(content) < 2.5 * weight.nbytes
    (tmp_path / "t").write_bytes(content)
    found = read_tensors(tmp_path / "t")
    assert found["head"].data_ptr() == found["embedding"].data_ptr() != found["other"].data_ptr()
    assert torch.equal(found["head"], weight)


def test_parts_of_one_tensor_are_stored_as_they_are(tmp_path):
    whole = torch.arange(10.0)
    (tmp_path / "t").write_bytes(tensor_bytes({"left": whole[:5], "right": whole[5:], "begin": whole[:3]}))
    found = read_tensors(tmp_path / "t")
    assert [found[name].tolist() for name in ("left", "right", "begin")] == [
        [0, 1, 2, 3, 4],
        [5, 6, 7, 8, 9],
        [0, 1, 2],
    ]


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"items": {"tensor": "not a tensor", "items": []}},
        {"numbers": [1, -2.5, 1e-300, 0.1 + 0.2, float("inf"), None, True], 3: {"int key": "text"}},
        [[], [{}], "ü"],
    ],
)
def test_state_without_tensors_comes_back_exactly(tmp_path, state):
    (tmp_path / "s").write_bytes(state_bytes(state))
    assert read_state(tmp_path / "s") == state


@pytest.mark.parametrize("kind", ["adamw", "sgd", "adagrad"])
def test_the_state_of_an_optimizer_comes_back_exactly(tmp_path, kind):
    def optimizer(parameters):
        made = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD, "adagrad": torch.optim.Adagrad}[kind]
        return made(parameters, lr=0.1)

    parameters = [torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(2, 2))]
    first = optimizer(parameters)
    for _ in range(3):
        for parameter in parameters[:1]:  # the second never had a gradient
            parameter.grad = torch.full_like(parameter, 0.3)
        first.step()
    (tmp_path / "s").write_bytes(state_bytes({"optimizer": first.state_dict()}))
    copies = [torch.nn.Parameter(parameter.detach().clone()) for parameter in parameters]
    second = optimizer(copies)
    second.load_state_dict(read_state(tmp_path / "s")["optimizer"])
    for some in (parameters, copies):
        for parameter in some:
            parameter.grad = torch.full_like(parameter, -0.7)
    first.step()
    second.step()
    assert all(torch.equal(a, b) for a, b in zip(parameters, copies, strict=True))


def test_files_that_are_missing_cut_or_of_another_kind(tmp_path):
    with pytest.raises(CheckpointError, match="no such file"):
        read_tensors(tmp_path / "t")
    content = tensor_bytes({"a": torch.ones(100)})
    for kept in (0, 5, 50, len(content) - 1):
        (tmp_path / "t").write_bytes(content[:kept])
        with pytest.raises(CheckpointError, match="damaged or cut short"):
            read_tensors(tmp_path / "t")
    (tmp_path / "t").write_bytes(content)
    with pytest.raises(CheckpointError, match="no saved state"):
        read_state(tmp_path / "t")
