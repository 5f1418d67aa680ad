"""An adapter's directory read as a model, against the products written out in float64."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from merging.families import write_model
from polytask.core.errors import PolytaskError
from polytask.merging.opening import Opened, open_model
from polytask.merging.weights.lora import LoraWeights

HEIGHT, WIDTH, RANK = 300, 500, 3


def base_values() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    return {
        "layers.0.q.weight": random(HEIGHT, WIDTH),
        "layers.0.q.bias": random(HEIGHT),
        "layers.1.q.weight": random(HEIGHT, WIDTH),
        "conv.weight": random(8, 4, 3, 3),
        "embed.weight": random(20, 6),
        "head.weight": random(2, 5),
    }


def write_adapter(folder: Path, factors: dict[str, Tensor], **config: Any) -> Path:
    folder.mkdir()
    save_file(
        {f"base_model.model.{name}": value for name, value in factors.items()}, folder / "adapter_model.safetensors"
    )
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": RANK, "lora_alpha": 6, **config}))
    return folder


def pair(module: str, height: int, width: int, rank: int = RANK, seed: int = 1) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    down, up = torch.randn(rank, width, generator=generator), torch.randn(height, rank, generator=generator)
    return {f"{module}.lora_A.weight": down, f"{module}.lora_B.weight": up}


@pytest.fixture
def base(tmp_path: Path) -> Opened:
    return open_model(str(write_model(tmp_path / "base", base_values(), {})))


def opened(path: Path, base: Opened) -> LoraWeights:
    weights = open_model(str(path), base=base).weights
    assert isinstance(weights, LoraWeights)
    return weights


def whole(weights: LoraWeights, name: str) -> Tensor:
    shape = torch.Size(weights.shape(name))
    return weights.read(name, 0, shape.numel()).reshape(shape)


def product(factors: dict[str, Tensor], module: str, scaling: float) -> Tensor:
    return scaling * factors[f"{module}.lora_B.weight"].double() @ factors[f"{module}.lora_A.weight"].double()


@pytest.mark.parametrize(
    "config, scaling",
    [
        ({}, 6 / 3),
        ({"use_rslora": True}, 6 / 3**0.5),
        ({"alpha_pattern": {"layers.0.q": 30}}, 30 / 3),
        ({"alpha_pattern": {"0.q": 30}}, 30 / 3),
        ({"alpha_pattern": {"layers.1.q": 30}}, 6 / 3),
        ({"alpha_pattern": {r"layers\.\d\.q": 9}, "use_rslora": True}, 9 / 3**0.5),
    ],
)
def test_a_matrix_is_the_base_and_the_scaled_product(
    tmp_path: Path, base: Opened, config: dict[str, Any], scaling: float
) -> None:
    factors = pair("layers.0.q", HEIGHT, WIDTH)
    weights = opened(write_adapter(tmp_path / "lora", factors, **config), base)
    expected = base_values()["layers.0.q.weight"].double() + product(factors, "layers.0.q", scaling)
    torch.testing.assert_close(whole(weights, "layers.0.q.weight").double(), expected, rtol=1e-5, atol=1e-5)


def test_a_rank_pattern_changes_the_scaling(tmp_path: Path, base: Opened) -> None:
    factors = pair("layers.0.q", HEIGHT, WIDTH, rank=2) | pair("layers.1.q", HEIGHT, WIDTH, rank=4)
    weights = opened(write_adapter(tmp_path / "lora", factors, rank_pattern={"layers.0.q": 2}, r=4), base)
    for layer, rank in ((0, 2), (1, 4)):
        name = f"layers.{layer}.q"
        found = weights.change(f"{name}.weight", 0, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH)
        torch.testing.assert_close(found.double(), product(factors, name, 6 / rank), rtol=1e-5, atol=1e-5)


def test_the_change_survives_the_subtraction_of_the_base(tmp_path: Path, base: Opened) -> None:
    """A product a million times smaller than the base still has its digits."""
    factors = {name: 1e-3 * value for name, value in pair("layers.0.q", HEIGHT, WIDTH).items()}
    weights = opened(write_adapter(tmp_path / "lora", factors), base)
    found = whole(weights, "layers.0.q.weight") - base_values()["layers.0.q.weight"].double()
    torch.testing.assert_close(found, product(factors, "layers.0.q", 2.0), rtol=1e-5, atol=1e-12)


def test_what_the_adapter_leaves_alone_is_the_base(tmp_path: Path, base: Opened) -> None:
    weights = opened(write_adapter(tmp_path / "lora", pair("layers.0.q", HEIGHT, WIDTH)), base)
    assert torch.equal(whole(weights, "layers.1.q.weight"), base_values()["layers.1.q.weight"])
    assert list(weights.names()) == list(base.weights.names())
    assert not weights.touches("layers.1.q.weight")


def test_pieces_are_bit_for_bit_those_of_the_whole(tmp_path: Path, base: Opened) -> None:
    weights = opened(write_adapter(tmp_path / "lora", pair("layers.0.q", HEIGHT, WIDTH)), base)
    name, count = "layers.0.q.weight", HEIGHT * WIDTH
    expected = weights.read(name, 0, count)
    for step in (1000, 65_536, 77_777):
        pieces = [weights.read(name, start, min(start + step, count)) for start in range(0, count, step)]
        assert torch.equal(torch.cat(pieces), expected)


def test_convolutions_embeddings_and_transposed_layers(tmp_path: Path, base: Opened) -> None:
    generator = torch.Generator().manual_seed(3)
    down, up = torch.randn(2, 4, 3, 3, generator=generator), torch.randn(8, 2, 1, 1, generator=generator)
    first, second = torch.randn(2, 20, generator=generator), torch.randn(6, 2, generator=generator)
    factors = {"conv.lora_A.weight": down, "conv.lora_B.weight": up}
    factors |= {"embed.lora_embedding_A": first, "embed.lora_embedding_B": second}
    weights = opened(write_adapter(tmp_path / "lora", factors), base)
    scaling = 6 / 2
    expected = scaling * torch.einsum("or,rikl->oikl", up[:, :, 0, 0].double(), down.double())
    found = whole(weights, "conv.weight").double() - base_values()["conv.weight"].double()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    found = whole(weights, "embed.weight").double() - base_values()["embed.weight"].double()
    torch.testing.assert_close(found, scaling * (second.double() @ first.double()).T, rtol=1e-4, atol=1e-5)


def test_an_embedding_that_is_saved_beside_its_factors_is_what_they_are_added_to(tmp_path: Path, base: Opened) -> None:
    """As peft does where it adapts embeddings."""
    generator = torch.Generator().manual_seed(3)
    first, second = torch.randn(2, 20, generator=generator), torch.randn(6, 2, generator=generator)
    factors = {"embed.lora_embedding_A": first, "embed.lora_embedding_B": second}
    whole_too = {**factors, "embed.base_layer.weight": base_values()["embed.weight"]}
    alone, beside = (opened(write_adapter(tmp_path / str(len(given)), given), base) for given in (factors, whole_too))
    assert torch.equal(whole(alone, "embed.weight"), whole(beside, "embed.weight"))
    resized = {**factors, "embed.base_layer.weight": torch.ones(22, 6)}
    with pytest.raises(PolytaskError, match=r"base_layer.weight' is \[22, 6\]; the base has \[20, 6\]"):
        opened(write_adapter(tmp_path / "resized", resized), base)


def test_fan_in_fan_out_is_transposed(tmp_path: Path) -> None:
    values = {"c.weight": torch.zeros(5, 7)}  # [in, out], as GPT-2 has it
    base = open_model(str(write_model(tmp_path / "base", values, {})))
    factors = pair("c", 7, 5)
    weights = opened(write_adapter(tmp_path / "lora", factors, fan_in_fan_out=True), base)
    torch.testing.assert_close(whole(weights, "c.weight").double(), product(factors, "c", 2.0).T, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("suffix", ["", ".weight"])
def test_a_dora_gives_each_output_its_magnitude(tmp_path: Path, suffix: str) -> None:
    """magnitude * (W + s B A) / its length: by row of a matrix and of a kernel, by column of an embedding."""
    generator = torch.Generator().manual_seed(2)
    values = {
        name: torch.randn(shape, generator=generator)
        for name, shape in {"q.weight": (300, 500), "conv.weight": (8, 4, 3, 3), "embed.weight": (20, 6)}.items()
    }
    base = open_model(str(write_model(tmp_path / "base", values, {})))
    kernel = {
        key: value.reshape(-1, 4, 3, 3) if "_A" in key else value.reshape(8, -1, 1, 1)
        for key, value in pair("conv", 8, 36).items()
    }
    embedding = {
        "embed.lora_embedding_A": torch.randn(3, 20, generator=generator),
        "embed.lora_embedding_B": torch.randn(6, 3, generator=generator),
    }
    lengths = {"q": 300, "conv": 8, "embed": 6}
    magnitudes = {module: torch.rand(length, generator=generator) + 0.5 for module, length in lengths.items()}
    factors = {
        **pair("q", 300, 500),
        **kernel,
        **embedding,
        "q.lora_magnitude_vector" + suffix: magnitudes["q"],
        "conv.lora_magnitude_vector" + suffix: magnitudes["conv"].view(1, 8, 1, 1),
        "embed.lora_magnitude_vector" + suffix: magnitudes["embed"],
    }
    weights = opened(write_adapter(tmp_path / "dora", factors, use_dora=True), base)
    summed = {
        "q": values["q.weight"].double() + product(factors, "q", 2.0),
        "conv": values["conv.weight"].double().flatten(1) + product(pair("conv", 8, 36), "conv", 2.0),
        "embed": (
            values["embed.weight"].double()
            + 2 * (embedding["embed.lora_embedding_B"] @ embedding["embed.lora_embedding_A"]).T.double()
        ).T,
    }
    for module, matrix in summed.items():
        expected = magnitudes[module].double()[:, None] * matrix / matrix.norm(dim=1, keepdim=True)
        expected = expected.T if module == "embed" else expected
        name = f"{module}.weight"
        torch.testing.assert_close(whole(weights, name).double().flatten(1), expected, rtol=1e-6, atol=1e-6)
        count = expected.numel()
        pieces = [weights.read(name, start, min(start + 777, count)) for start in range(0, count, 777)]
        assert torch.equal(torch.cat(pieces), weights.read(name, 0, count))


def test_a_dora_that_was_not_trained_is_its_base(tmp_path: Path, base: Opened) -> None:
    """B is 0 and the magnitudes are the lengths: what peft starts from."""
    matrix = base_values()["layers.0.q.weight"]
    factors = {**pair("layers.0.q", HEIGHT, WIDTH), "layers.0.q.lora_magnitude_vector": matrix.norm(dim=1)}
    factors["layers.0.q.lora_B.weight"] *= 0
    weights = opened(write_adapter(tmp_path / "dora", factors, use_dora=True), base)
    torch.testing.assert_close(whole(weights, "layers.0.q.weight").float(), matrix, rtol=1e-6, atol=1e-6)


def test_modules_that_were_trained_whole_are_the_adapters(tmp_path: Path, base: Opened) -> None:
    head = torch.ones(2, 5)
    factors = {**pair("layers.0.q", HEIGHT, WIDTH), "head.weight": head}
    weights = opened(write_adapter(tmp_path / "lora", factors, modules_to_save=["head"]), base)
    assert torch.equal(whole(weights, "head.weight"), head)


@pytest.mark.parametrize(
    "factors, config, message",
    [
        (pair("layers.0.q", HEIGHT, WIDTH), {"use_dora": True}, "use_dora: 'layers.0.q' has no lora_magnitude_vector"),
        (
            {**pair("layers.0.q", HEIGHT, WIDTH), "layers.0.q.lora_magnitude_vector": torch.ones(3)},
            {"use_dora": True},
            "'layers.0.q' has 3 magnitudes for 300 outputs",
        ),
        (
            {"layers.0.q.lora_magnitude_vector": torch.ones(HEIGHT)},
            {"use_dora": True},
            "has a magnitude and no factors",
        ),
        (pair("layers.0.q", HEIGHT, WIDTH), {"lora_bias": True}, "lora_bias: the factors have biases"),
        (pair("layers.0.q", HEIGHT, WIDTH), {"init_lora_weights": "pissa_niter_4"}, "which changed the base"),
        (pair("layers.0.q", HEIGHT, WIDTH), {"peft_type": "IA3"}, "peft_type is 'IA3'; allowed: LORA"),
        (pair("layers.7.q", HEIGHT, WIDTH), {}, "no parameter of the base 'layers.7.q.weight' (did you mean 'layers."),
        (pair("layers.0.q", HEIGHT, 7), {}, "their product must be [300, 500], as 'layers.0.q.weight' of the base"),
        ({"layers.0.q.lora_A.weight": torch.ones(3, WIDTH)}, {}, "'layers.0.q' has lora_A without the other"),
        (
            {**pair("layers.0.q", HEIGHT, WIDTH), "layers.0.q.lora_magnitude_vector": torch.ones(3)},
            {},
            "no parameter of the base 'layers.0.q.lora_magnitude_vector'",
        ),
    ],
)
def test_what_is_no_plain_lora_is_refused(
    tmp_path: Path, base: Opened, factors: dict[str, Tensor], config: dict[str, Any], message: str
) -> None:
    path = write_adapter(tmp_path / "lora", factors, **config)
    with pytest.raises(PolytaskError) as caught:
        open_model(str(path), base=base)
    assert message in str(caught.value)


def test_an_adapter_finds_its_own_base(tmp_path: Path, base: Opened) -> None:
    factors = pair("layers.0.q", HEIGHT, WIDTH)
    path = write_adapter(tmp_path / "lora", factors, base_model_name_or_path=str(base.path))
    assert open_model(str(path)).path == base.path
    nameless = write_adapter(tmp_path / "nameless", factors)
    with pytest.raises(PolytaskError, match="is a LoRA and names no base"):
        open_model(str(nameless))
    assert open_model(f"{base.path}+{nameless}").adapter == nameless
    with pytest.raises(PolytaskError, match=r"no adapter_config.json, so no LoRA"):
        open_model(f"{base.path}+{base.path}")
