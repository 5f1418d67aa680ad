"""Does polytask read mergekit's files as mergekit does? The same small merges by both, tensor by tensor, in float32.

`python -m benchmarks.merging.agreement --mergekit ENVIRONMENT/bin/mergekit-yaml` prints a table; mergekit is a black
box in an environment of its own. A case that is to differ (docs/mergekit.md says why) is marked; with `--compat`
polytask follows mergekit's formulas, and fewer do.
"""

import argparse
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor

import polytask
from polytask.checkpoints.directory import json_bytes

LAYERS, WIDTH, INNER, TOKENS = 5, 16, 32, 64
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": WIDTH,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": TOKENS,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
}
WITHIN = 1e-5
"""Of a tensor's mean magnitude: what float32 arithmetic in another order may differ by."""


def models(**parameters: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"model": f"./{name}", "parameters": given} for name, given in parameters.items()]


def case(method: str, entries: list[dict[str, Any]], base: str | None = None, **rest: Any) -> dict[str, Any]:
    own = {"merge_method": method, "models": entries, "dtype": "float32", **rest}
    return own if base is None else {**own, "base_model": f"./{base}"}


ABC = models(a={}, b={}, c={})
PAIR = models(base={}, a={})
TRIMMED = models(a={"weight": 0.5, "density": 0.3}, b={"weight": 0.3, "density": 0.5}, c={"density": 0.2, "weight": 1})
CRUMBS = models(a={"weight": 0.5, "density": 0.9, "gamma": 0.03}, b={"weight": 0.3, "density": 0.4, "gamma": 0.01})
BY_PART = [{"filter": "mlp", "value": 0.3}, {"value": -0.4}]
BY_DEPTH = [{"filter": "self_attn", "value": [0, 0.5, 1]}, {"value": 0.3}]


def sources(*ranges: tuple[str, int, int], **parameters: dict[str, Any]) -> dict[str, Any]:
    listed = [{"model": f"./{n}", "layer_range": [i, j], "parameters": parameters.get(n, {})} for n, i, j in ranges]
    return {"sources": listed}


CASES: dict[str, dict[str, Any]] = {
    "linear": case("linear", models(a={"weight": 1}, b={"weight": 2}, c={"weight": 0.5})),
    "linear, base_model too": case("linear", models(base={"weight": 1}, a={"weight": 0.5}), "base"),
    "linear, not normalised": case(
        "linear", models(a={"weight": 0.2}, b={"weight": [0, 1]}), parameters={"normalize": False}
    ),
    "task_arithmetic": case(
        "task_arithmetic", models(a={"weight": 0.5}, b={"weight": BY_PART}), "base", parameters={"lambda": 0.7}
    ),
    "slerp": case("slerp", PAIR, "base", parameters={"t": BY_DEPTH}),
    "slerp, far apart": case("slerp", models(base={}, z={}), "base", parameters={"t": 0.3}),
    "nuslerp": case("nuslerp", models(a={"weight": 1}, z={"weight": 3})),
    "nuslerp on changes": case("nuslerp", models(a={"weight": 1}, b={"weight": 3}), "base"),
    "nuslerp by row": case(
        "nuslerp", models(a={"weight": 1}, b={"weight": 3}), "base", parameters={"nuslerp_flatten": False}
    ),
    "nuslerp, weights over depth": case(
        "nuslerp",
        models(a={"weight": [2, 1]}, b={"weight": [{"filter": "mlp", "value": [1, 3]}, {"value": 1}]}),
        "base",
    ),
    "multislerp": case("multislerp", models(a={"weight": 1}, b={"weight": 2}, z={"weight": 1})),
    "multislerp on changes": case("multislerp", models(a={"weight": 1}, b={"weight": 2}, c={"weight": 1}), "base"),
    "karcher": case("karcher", models(a={}, b={}, z={})),
    "ties": case("ties", TRIMMED, "base"),
    "ties, not normalised": case("ties", TRIMMED, "base", parameters={"normalize": False, "lambda": 0.5}),
    "ties, negative weight": case("ties", models(a={"weight": -1, "density": 0.3}), "base"),
    "dare_linear, density 1": case("dare_linear", models(a={"weight": 0.5, "density": 1}, b={"weight": 0.3}), "base"),
    "dare_ties, density 1": case("dare_ties", models(a={"weight": 0.5, "density": 1}, b={"weight": 0.3}), "base"),
    "della, density 1": case(
        "della", models(a={"weight": 0.5, "density": 1, "epsilon": 0}, b={"weight": 0.3, "epsilon": 0}), "base"
    ),
    "breadcrumbs": case("breadcrumbs", CRUMBS, "base"),
    "breadcrumbs_ties": case("breadcrumbs_ties", CRUMBS, "base"),
    "sce": case("sce", ABC, "base", parameters={"select_topk": 0.4}),
    "model_stock": case("model_stock", ABC, "base"),
    "model_stock, filter_wise": case("model_stock", ABC, "base", parameters={"filter_wise": True}),
    "nearswap": case("nearswap", PAIR, "base", parameters={"t": 0.001}),
    "arcee_fusion": case("arcee_fusion", PAIR, "base"),
    "passthrough": case("passthrough", models(a={"scale": [{"filter": "down_proj", "value": 0.5}, {"value": 1}]})),
    "slices, stacked": {
        "merge_method": "passthrough",
        "dtype": "float32",
        "slices": [sources(("a", 0, 3), a={"scale": [1, 3]}), sources(("b", 2, 5))],
    },
    "slices, slerp": {
        "merge_method": "slerp",
        "dtype": "float32",
        "base_model": "./a",
        "slices": [sources(("a", 0, 3), ("b", 0, 3)), sources(("a", 2, 5), ("b", 2, 5))],
        "parameters": {"t": [{"filter": "mlp", "value": [0, 1]}, {"value": 0.4}]},
    },
    "slices, other pairs and lengths": {
        "merge_method": "slerp",
        "dtype": "float32",
        "base_model": "./a",
        "slices": [
            sources(("a", 0, 3), ("b", 0, 3)),
            sources(("c", 2, 4), ("a", 2, 4)),
            sources(("b", 4, 5), ("a", 4, 5)),
        ],
        "parameters": {"t": [0, 1]},
    },
}
TO_DIFFER = (
    "ties, negative weight",
    "breadcrumbs",
    "breadcrumbs_ties",
    "model_stock",
    "model_stock, filter_wise",
    "karcher",
    "arcee_fusion",
)


def tensors(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return 0.02 * torch.randn(*shape, generator=generator)

    found = {"model.embed_tokens.weight": random(TOKENS, WIDTH), "lm_head.weight": random(TOKENS, WIDTH)}
    for layer in range(LAYERS):
        stem = f"model.layers.{layer}."
        found |= {f"{stem}self_attn.{part}_proj.weight": random(WIDTH, WIDTH) for part in "qkvo"}
        found |= {f"{stem}mlp.{part}_proj.weight": random(INNER, WIDTH) for part in ("gate", "up")}
        found[f"{stem}mlp.down_proj.weight"] = random(WIDTH, INNER)
        found |= {f"{stem}{part}_layernorm.weight": 1 + random(WIDTH) for part in ("input", "post_attention")}
    return {**found, "model.norm.weight": 1 + random(WIDTH)}


def write_models(folder: Path) -> None:
    """The base, three fine-tunes of it, and a model that has nothing to do with them."""
    base = tensors(0)
    changes = {name: tensors(seed) for name, seed in (("a", 1), ("b", 2), ("c", 3))}
    family = {"base": base, "z": tensors(9)}
    for name, change in changes.items():
        family[name] = {key: value + 0.1 * (change[key] - change[key].mean()) for key, value in base.items()}
    for name, values in family.items():
        (folder / name).mkdir()
        save_file(values, folder / name / "model.safetensors", {"format": "pt"})
        (folder / name / "config.json").write_bytes(json_bytes(CONFIG))


def by_mergekit(programme: Path, folder: Path) -> dict[str, Tensor]:
    line = [str(programme), "case.yml", "theirs", "--no-copy-tokenizer", "--quiet"]
    subprocess.run(line, cwd=folder, check=True, capture_output=True)
    return {
        name: value for path in (folder / "theirs").glob("*.safetensors") for name, value in load_file(path).items()
    }


def compared(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> tuple[int, int, float]:
    """(elements that differ, elements, the largest difference over its tensor's mean magnitude)."""
    assert sorted(ours) == sorted(theirs), sorted(set(ours) ^ set(theirs))
    relative = [
        (ours[name].double() - value.double()).abs() / value.double().abs().mean().clamp(min=1e-30)
        for name, value in theirs.items()
    ]
    off = sum(int((each > WITHIN).sum()) for each in relative)
    return off, sum(each.numel() for each in relative), max(float(each.max()) for each in relative)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    arguments.add_argument("--mergekit", type=Path, required=True, help="mergekit-yaml of another environment")
    arguments.add_argument("--compat", action="store_true", help="polytask merge --compat mergekit")
    arguments.add_argument("cases", nargs="*", metavar="CASE", help="by default all")
    given = arguments.parse_args()
    programme = given.mergekit.absolute()
    print("| case | elements that differ | largest difference | |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as scratch:
        write_models(Path(scratch))
        for name, values in {name: CASES[name] for name in given.cases or CASES}.items():
            folder = Path(scratch)
            (folder / "case.yml").write_text(yaml.safe_dump(values))
            theirs = by_mergekit(programme, folder)
            polytask.merge(folder / "case.yml", out=folder / "ours", compatible=given.compat)
            off, elements, largest = compared(load_file(folder / "ours" / "model.safetensors"), theirs)
            remark = "" if off == 0 else "to differ" if name in TO_DIFFER else "DIFFERS"
            print(f"| {name} | {off:,} of {elements:,} | {largest:.1e} | {remark} |", flush=True)
            for made in ("ours", "theirs"):
                shutil.rmtree(folder / made)


if __name__ == "__main__":
    main()
