"""Outputs of frozen encoder layers, computed once for all epochs, and once for all runs on the same rows."""

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from polytask.tasks.examples import Examples, Ragged
from polytask.training.devices import Devices

FeatureCache = dict[tuple[Any, ...], Examples]
"""(frozen weights, precision, identity of the rows, ...) -> the rows with `hidden` instead of token ids."""

_BATCH = 64


class FrozenFeatures:
    """Gives rows with the frozen layers' outputs where the model's encoders offer them (`precompute`).

    With several encoders in one model (sharing: single) all must have the same frozen layers, or nothing is cached;
    nor is it where the encoder works for each task by itself.
    Memory: 4 bytes a number, tokens x width numbers a source and split; what would take more than `bound_mb` is
    computed in every step instead.

    Args:
        model: the run's model.
        devices: where features are computed; they are kept in the computer's memory.
        cache: of this run, or of several on the same rows.
        bound_mb: the largest size of one source's split, in MiB.
    """

    def __init__(self, model: nn.Module, devices: Devices, cache: FeatureCache, bound_mb: int) -> None:
        self._devices, self._cache, self._bound = devices, cache, bound_mb * 2**20
        self.remarks: list[str] = []
        encoders = [module for module in model.modules() if getattr(module, "precomputes", False)]
        readers = [module for module in model.modules() if hasattr(module, "precompute")]
        prints = list(dict.fromkeys(_fingerprint(encoder) for encoder in encoders))
        by_task = any(getattr(module, "encodes_by_task", False) for module in model.modules())
        alike = len(encoders) == len(readers) and len(prints) == 1 and not by_task
        self._encoder: Any = encoders[0] if alike else None
        self._frozen = prints[0] if alike else ""

    def rows(self, splits: Mapping[str, Any]) -> dict[str, Any]:
        """The rows of each source; those streamed from disk as they are: their features would not fit either."""
        return {source: self._of_source(split) for source, split in splits.items()}

    def _of_source(self, split: Any) -> Any:
        if self._encoder is None or not isinstance(split, Examples):
            return split
        if "attention_mask" not in split.inputs:  # a source whose stem reads no text
            return split
        # the cached rows hold the same tensor of row numbers, so its identity stays theirs
        key = (self._frozen, self._devices.precision, split.source, id(split.rows))
        if key not in self._cache:
            found = self._computed(split)
            if found is None:
                return split
            self._cache[key] = found
        return self._cache[key]

    def _computed(self, examples: Examples) -> Examples | None:
        """Rows by falling length, so that little is computed for padding; then back in their order, packed."""
        lengths = _lengths(examples)
        order = torch.argsort(lengths, descending=True, stable=True)
        pieces: list[Tensor] = []
        rest: dict[str, list[Tensor]] = {}
        for features in self._batches(examples, order):
            hidden, mask = features.pop("hidden"), features.pop("attention_mask").bool()
            vectors = int(lengths.sum()) if hidden.shape[1] > 1 else len(examples)  # a row's tokens, or their mean
            size = vectors * hidden.shape[-1] * hidden.element_size()
            if size > self._bound:
                self.remarks.append(
                    f"source {examples.source!r}: the frozen layers' outputs for {len(examples)} rows would take "
                    f"{size >> 20} MiB, more than run.feature_cache_mb: computed in every step instead"
                )
                return None
            pieces += [row[inside] for row, inside in zip(hidden, mask, strict=True)]
            for name, tensor in features.items():
                rest.setdefault(name, []).append(tensor)
        back = torch.argsort(order)
        rows = [pieces[i] for i in back.tolist()]
        offsets = torch.tensor([0, *[len(row) for row in rows]]).cumsum(0)
        hidden = Ragged(torch.cat(rows), offsets)
        mask = Ragged(torch.ones(len(hidden.values), dtype=torch.int64), offsets)
        inputs: dict[str, Tensor | Ragged] = {name: torch.cat(tensors)[back] for name, tensors in rest.items()}
        return examples.with_inputs({**inputs, "hidden": hidden, "attention_mask": mask})

    def _batches(self, examples: Examples, order: Tensor) -> Iterator[dict[str, Tensor]]:
        for start in range(0, len(examples), _BATCH):
            batch = examples.batch(order[start : start + _BATCH]).to(self._devices.device)
            with torch.no_grad(), self._devices.autocast():
                yield {name: tensor.cpu() for name, tensor in self._encoder.precompute(batch.inputs).items()}


def _lengths(examples: Examples) -> Tensor:
    mask = examples.inputs["attention_mask"]
    return mask.offsets.diff() if isinstance(mask, Ragged) else mask.sum(1)


def _fingerprint(encoder: nn.Module) -> str:
    """A hash of the frozen parameters and of how deep they reach."""
    digest = hashlib.sha256(repr(getattr(encoder, "frozen_layers", None)).encode())
    for name, parameter in encoder.named_parameters():
        if not parameter.requires_grad:
            digest.update(name.encode())
            digest.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
