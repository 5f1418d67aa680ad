"""Small models on disk, of thousands of parameters at most."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

WIDTH, LAYERS, TOKENS = 4, 3, 6


def tensors(seed: int, layers: int = LAYERS, tokens: int = TOKENS) -> dict[str, Tensor]:
    """A toy language model's: embeddings, layers with a matrix and a norm, a final norm and a head."""
    generator = torch.Generator().manual_seed(seed)
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (tokens, WIDTH)}
    for layer in range(layers):
        shapes[f"model.layers.{layer}.mlp.weight"] = (WIDTH, WIDTH)
        shapes[f"model.layers.{layer}.norm.weight"] = (WIDTH,)
    shapes |= {"model.norm.weight": (WIDTH,), "lm_head.weight": (tokens, WIDTH)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def fine_tuned(base: Mapping[str, Tensor], seed: int, size: float = 0.1) -> dict[str, Tensor]:
    """The base, moved a little."""
    generator = torch.Generator().manual_seed(1000 + seed)
    return {
        name: (value + size * torch.randn(value.shape, generator=generator)).to(value.dtype)
        if value.is_floating_point()
        else value.clone()
        for name, value in base.items()
    }


def write_model(path: Path, values: Mapping[str, Tensor], config: Mapping[str, Any] | None = None) -> Path:
    """A directory as Hugging Face has it."""
    path.mkdir(parents=True)
    save_file(
        {name: value.contiguous() for name, value in values.items()}, path / "model.safetensors", {"format": "pt"}
    )
    described = {"model_type": "toy", "num_hidden_layers": LAYERS, "vocab_size": TOKENS} if config is None else config
    if described:
        (path / "config.json").write_text(json.dumps(described))
    return path


def write_family(folder: Path, tasks: str = "ab", **options: Any) -> dict[str, dict[str, Tensor]]:
    """folder/base and folder/TASK, fine-tuned from it; what is in them."""
    base = tensors(0, **options)
    family = {"base": base, **{task: fine_tuned(base, number) for number, task in enumerate(tasks)}}
    for name, values in family.items():
        write_model(folder / name, values)
    return family
