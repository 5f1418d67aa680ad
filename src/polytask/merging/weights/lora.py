"""peft's LoRA directories: the model that an adapter makes of its base, element by element, never as a whole.

W + s B A for each adapted matrix, with s = alpha / r, or alpha / sqrt(r) for rank-stabilised adapters (rsLoRA); alpha
may differ by module (`alpha_pattern`), r is the number of rows of A. Of a DoRA (Liu et al. 2024, arXiv:2402.09353) that
sum, with the weights of each output (of an embedding: of each of its numbers) divided by their length and multiplied by
the magnitude that was trained. Parameters that the adapter trained whole (`modules_to_save`, biases) are its own; all
others are the base's.
"""

import math
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from polytask.checkpoints.directory import read_json
from polytask.core.errors import CheckpointError, UnknownName
from polytask.merging.weights.interface import Weights

CONFIG, FILES = "adapter_config.json", ("adapter_model.safetensors", "adapter_model.bin")
BLOCK = 1 << 16
"""Elements of a product that are computed at once."""

_HEAD, _BENEATH = "base_model.model.", ".base_layer."
_FACTOR = re.compile(r"(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<side>[AB])(\.weight)?")
_MAGNITUDE = re.compile(r"(?P<module>.+)\.lora_magnitude_vector(\.weight)?")


@dataclass(frozen=True)
class Product:
    """s B A, in the layout of the parameter that it is added to."""

    down: Tensor  # A, [r, n]
    up: Tensor  # B, [m, r]
    scaling: float
    transposed: bool  # the parameter is [n, m]
    magnitude: Tensor | None = None  # of a DoRA, float64 [m]

    def rows(self, start: int, stop: int) -> Tensor:
        """Rows of the parameter's matrix, float32."""
        if self.transposed:
            return (self.up @ self.down[:, start:stop]).T * self.scaling
        return (self.up[start:stop] @ self.down) * self.scaling


class LoraWeights:
    """A base with an adapter; the names, shapes and order are the base's.

    Args:
        directory: with adapter_config.json and the adapter's tensors.
        adapter: the tensors of the directory, opened.
        base: the model that the adapter was trained on.
    """

    def __init__(self, directory: Path, adapter: Weights, base: Weights) -> None:
        self._adapter, self._base = adapter, base
        self._config = _checked_config(directory)
        self._directory = directory
        self._beneath: dict[str, str] = {}  # adapted embeddings are saved whole beside their factors
        self._products, self._whole = self._parts()
        self._factors: dict[str, Tensor] = {}  # of a DoRA's outputs: magnitude / length
        self._lock = threading.Lock()

    def names(self) -> list[str]:
        return list(self._base.names())

    def shape(self, name: str) -> tuple[int, ...]:
        return self._base.shape(name)

    def dtype(self, name: str) -> torch.dtype:
        if name in self._products:  # so that the product is there to the last digit when the base is subtracted
            return torch.float64
        return self._adapter.dtype(self._whole[name]) if name in self._whole else self._base.dtype(name)

    def stored_dtype(self, name: str) -> torch.dtype:
        """Of the tensor beneath the adapter, which the output keeps unless the plan says otherwise."""
        return self._base.dtype(name)

    def read(self, name: str, start: int, stop: int) -> Tensor:
        if name in self._whole:
            return self._adapter.read(self._whole[name], start, stop)
        if name not in self._products:
            return self._base.read(name, start, stop)
        values = self._sum(name, start, stop)
        if self._products[name].magnitude is None:
            return values
        factors, places = self._outputs(name), torch.arange(start, stop)
        return values.mul_(factors[self._output_of(name, places)])

    def touches(self, name: str) -> bool:
        """Whether the adapter changes the tensor at all."""
        return name in self._products or name in self._whole

    def change(self, name: str, start: int, stop: int) -> Tensor:
        """Elements of s B A, float32."""
        product, (height, *rest) = self._products[name], self.shape(name)
        width = math.prod(rest)
        # Blocks of rows that are the same whatever is asked for: a product's last bits depend on its shape.
        step = max(1, BLOCK // width)
        first, last = start // width // step * step, min(height, -(-stop // (width * step)) * step)
        blocks = [product.rows(row, min(row + step, height)).reshape(-1) for row in range(first, last, step)]
        return torch.cat(blocks)[start - first * width : stop - first * width]

    def _sum(self, name: str, start: int, stop: int) -> Tensor:
        """W + s B A, float64."""
        beneath = self._beneath.get(name)
        values = self._base.read(name, start, stop) if beneath is None else self._adapter.read(beneath, start, stop)
        return values.double() + self.change(name, start, stop)

    def _output_of(self, name: str, places: Tensor) -> Tensor:
        """The output that each element belongs to: its row, or in a transposed parameter its column."""
        width = math.prod(self.shape(name)[1:])
        return places % width if self._products[name].transposed else places // width

    def _outputs(self, name: str) -> Tensor:
        """What a DoRA multiplies each output's weights by, float64 [m]; measured once, block by block."""
        with self._lock:
            if name not in self._factors:
                magnitude, elements = self._products[name].magnitude, math.prod(self.shape(name))
                assert magnitude is not None
                squares = torch.zeros_like(magnitude)
                for start in range(0, elements, BLOCK):
                    stop = min(start + BLOCK, elements)
                    outputs = self._output_of(name, torch.arange(start, stop))
                    squares.index_add_(0, outputs, self._sum(name, start, stop).square_())
                self._factors[name] = magnitude / squares.sqrt_()
            return self._factors[name]

    def where(self, name: str) -> str:
        return str(self._directory) if self.touches(name) else self._base.where(name)

    def files(self) -> list[Path]:
        return [*self._adapter.files(), self._directory / CONFIG]

    def fingerprint(self) -> str:
        return f"{self._adapter.fingerprint()}+{self._base.fingerprint()}"

    def hashes(self) -> dict[str, str]:
        return self._adapter.hashes()

    def close(self) -> None:
        self._adapter.close()

    def _parts(self) -> tuple[dict[str, Product], dict[str, str]]:
        """name in the base -> product, and name in the base -> name of a whole tensor in the adapter."""
        known = set(self._base.names())
        sides: dict[tuple[str, bool], dict[str, str]] = {}
        magnitudes: dict[str, str] = {}
        whole: dict[str, str] = {}
        for stored in self._adapter.names():
            name = stored.removeprefix(_HEAD)
            found = _FACTOR.fullmatch(name)
            if found:
                sides.setdefault((found["module"], bool(found["embedding"])), {})[found["side"]] = stored
            elif self._config.get("use_dora") and (scaled := _MAGNITUDE.fullmatch(name)):
                magnitudes[scaled["module"]] = stored
            elif name.replace(_BENEATH, ".") in known:
                own = name.replace(_BENEATH, ".")
                self._check_shape(own, stored)
                (self._beneath if own != name else whole)[own] = stored
            else:
                raise self._unknown(name, stored)
        products = {}
        adapted = [module for module, _ in sides]
        whole |= {name: stored for name, stored in self._beneath.items() if name.rpartition(".")[0] not in adapted}
        for (module, embedding), pair in sides.items():
            name = f"{module}.weight" if f"{module}.weight" in known else module
            if name not in known:
                raise self._unknown(f"{module}.weight", next(iter(pair.values())))
            if len(pair) != 2:
                raise CheckpointError(f"{self._directory}: {module!r} has lora_{next(iter(pair))} without the other")
            products[name] = self._product(name, module, pair, embedding)
            if self._config.get("use_dora"):
                products[name] = replace(products[name], magnitude=self._magnitude(module, products[name], magnitudes))
        if magnitudes:
            raise CheckpointError(f"{self._directory}: {next(iter(magnitudes))!r} has a magnitude and no factors")
        return products, whole

    def _magnitude(self, module: str, product: Product, magnitudes: dict[str, str]) -> Tensor:
        """A DoRA's magnitude of each output, float64; taken out of `magnitudes`."""
        if module not in magnitudes:
            raise CheckpointError(f"{self._directory}: use_dora: {module!r} has no lora_magnitude_vector")
        found = self._factor(magnitudes.pop(module)).double().flatten()
        if len(found) != len(product.up):
            raise CheckpointError(
                f"{self._directory}: {module!r} has {len(found)} magnitudes for {len(product.up)} outputs"
            )
        return found

    def _check_shape(self, name: str, stored: str) -> None:
        found, wanted = self._adapter.shape(stored), self.shape(name)
        if found != wanted:
            raise CheckpointError(f"{self._directory}: {stored!r} is {list(found)}; the base has {list(wanted)}")

    def _unknown(self, name: str, stored: str) -> UnknownName:
        return UnknownName("parameter of the base", name, self._base.names(), f"{self._directory}, {stored}")

    def _product(self, name: str, module: str, pair: Mapping[str, str], embedding: bool) -> Product:
        down, up = (self._factor(pair[side]) for side in "AB")
        rank = len(down)
        alpha = _by_pattern(self._config.get("alpha_pattern"), module, self._config.get("lora_alpha", 8))
        scaling = alpha / math.sqrt(rank) if self._config.get("use_rslora") else alpha / rank
        transposed = embedding or bool(self._config.get("fan_in_fan_out"))
        down, up = down.flatten(1), up.flatten(1)
        found = (up.shape[0], down.shape[1]) if not transposed else (down.shape[1], up.shape[0])
        shape = self.shape(name)
        if up.shape[1] != rank or not shape or found != (shape[0], math.prod(shape[1:])):
            raise CheckpointError(
                f"{self._directory}: {module!r} has A {list(down.shape)} and B {list(up.shape)}; "
                f"their product must be {list(shape)}, as {name!r} of the base"
            )
        return Product(down, up, scaling, transposed)

    def _factor(self, stored: str) -> Tensor:
        shape = self._adapter.shape(stored)
        return self._adapter.read(stored, 0, math.prod(shape)).float().reshape(shape)


def is_adapter(directory: Path) -> bool:
    return (directory / CONFIG).is_file()


def base_of(directory: Path) -> str | None:
    """The model that the adapter says it was trained on."""
    return read_json(directory / CONFIG).get("base_model_name_or_path")


_REFUSED = {
    "lora_bias": "the factors have biases",
    "use_qalora": "it pools its inputs",
    "megatron_config": "its matrices are split over devices",
    "target_parameters": "it adapts parameters that are no module's weight",
    "arrow_config": "it routes among adapters",
}


def _checked_config(directory: Path) -> dict[str, Any]:
    config = read_json(directory / CONFIG)
    where = directory / CONFIG
    if config.get("peft_type", "LORA") != "LORA":
        raise CheckpointError(f"{where}: peft_type is {config['peft_type']!r}; allowed: LORA")
    for key, why in _REFUSED.items():
        if config.get(key):
            raise CheckpointError(f"{where}: {key}: {why}; merge it into its base with peft first")
    start = str(config.get("init_lora_weights", True)).lower()
    if start.startswith(("pissa", "olora", "corda", "loftq")):
        raise CheckpointError(
            f"{where}: init_lora_weights is {start!r}, which changed the base; convert it to LoRA with peft"
        )
    return config


def _by_pattern(patterns: Mapping[str, float] | None, module: str, default: float) -> float:
    """The value of the first key that the module's name ends with; keys are regular expressions, as peft has them."""
    for key, value in (patterns or {}).items():
        if re.fullmatch(rf"(.*\.)?({key})", module):
            return value
    return default
