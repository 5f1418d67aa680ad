"""Synthetic language models: Llama's shapes, bfloat16, in shards; a base and fine-tunes of it, without any training."""

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file

HIDDEN, INNER, VOCABULARY, HEADS = 1024, 4096, 32_000, 16
LAYER = (3 * INNER + 4 * HIDDEN) * HIDDEN + 2 * HIDDEN  # parameters
SHARDS = 4
STD, CHANGE = 0.02, 0.1  # of the weights; of a fine-tune's change, relative to it
FINE_TUNES = ("a", "b", "c")


def layers_for(parameters: float) -> int:
    """As many layers as come nearest to this number of parameters."""
    return max(round((parameters - 2 * VOCABULARY * HIDDEN) / LAYER), 1)


def shapes(layers: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The tensors' names and shapes, as transformers names them."""
    yield "model.embed_tokens.weight", (VOCABULARY, HIDDEN)
    for layer in range(layers):
        stem = f"model.layers.{layer}."
        for part in ("q", "k", "v", "o"):
            yield f"{stem}self_attn.{part}_proj.weight", (HIDDEN, HIDDEN)
        yield f"{stem}mlp.gate_proj.weight", (INNER, HIDDEN)
        yield f"{stem}mlp.up_proj.weight", (INNER, HIDDEN)
        yield f"{stem}mlp.down_proj.weight", (HIDDEN, INNER)
        yield f"{stem}input_layernorm.weight", (HIDDEN,)
        yield f"{stem}post_attention_layernorm.weight", (HIDDEN,)
    yield "model.norm.weight", (HIDDEN,)
    yield "lm_head.weight", (VOCABULARY, HIDDEN)


def parameters(layers: int) -> int:
    return sum(math.prod(shape) for _, shape in shapes(layers))


def make(folder: Path, layers: int) -> None:
    """Writes folder/base and a folder for each fine-tune, unless they are there already."""
    if (folder / "made").exists():
        return
    for number, name in enumerate(("base", *FINE_TUNES)):
        _write(folder / name, layers, number)
    (folder / "made").write_text(f"{parameters(layers)} parameters\n")


def _write(directory: Path, layers: int, number: int) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    names = list(shapes(layers))
    share = parameters(layers) / SHARDS
    weight_map: dict[str, str] = {}
    shard: dict[str, torch.Tensor] = {}
    written = 0
    for index, (name, shape) in enumerate(names):
        shard[name] = _values(shape, index, number)
        if sum(tensor.numel() for tensor in shard.values()) >= share or index == len(names) - 1:
            written += 1
            file = f"model-{written:05}-of-{SHARDS:05}.safetensors"
            save_file(shard, directory / file, {"format": "pt"})
            weight_map.update(dict.fromkeys(shard, file))
            shard = {}
    index_of = {"metadata": {"total_size": 2 * parameters(layers)}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index_of, indent=2))
    (directory / "config.json").write_text(json.dumps(_config(layers), indent=2))


def _values(shape: tuple[int, ...], index: int, number: int) -> torch.Tensor:
    """The base's values, which depend on the tensor, plus the fine-tune's change, which depends on both."""
    generator = torch.Generator().manual_seed(1000 * index)
    values = torch.randn(shape, generator=generator).mul_(STD)
    if number:
        generator.manual_seed(1000 * index + number)
        values += torch.randn(shape, generator=generator).mul_(STD * CHANGE)
    return values.bfloat16()


def _config(layers: int) -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": layers,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "dtype": "bfloat16",
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


if __name__ == "__main__":
    make(Path(sys.argv[1]), int(sys.argv[2]))
