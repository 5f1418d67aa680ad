"""Outputs of frozen encoder layers, computed once for all epochs, and once for all runs on the same rows."""

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from polytask.tasks.examples import Examples, Ragged
from polytask.training.devices import Devices

FeatureCache = dict[tuple[Any, ...], Examples]
"""(frozen weights, identity of the rows, split) -> the rows with `hidden` instead of token ids."""

_BATCH = 64


def cached_rows(
    model: nn.Module, splits: Mapping[str, Any], cache: FeatureCache, split: str, devices: Devices
) -> dict[str, Any]:
    """The rows with the frozen layers' outputs where the model's encoders offer them (`precompute`), else as they are.

    Rows streamed from disk are left as they are: their features would not fit where the rows do not. With several
    encoders in one model (sharing: single) all must have the same frozen layers, or nothing is cached.
    """
    encoders = [module for module in model.modules() if getattr(module, "precomputes", False)]
    readers = [module for module in model.modules() if hasattr(module, "precompute")]
    prints = {_fingerprint(encoder) for encoder in encoders}
    if not encoders or len(readers) != len(encoders) or len(prints) != 1:
        return dict(splits)
    rows: dict[str, Any] = {}
    for source, examples in splits.items():
        if not isinstance(examples, Examples):
            rows[source] = examples
            continue
        key = (*prints, source, split, len(examples), id(examples.labels))
        if key not in cache:
            cache[key] = _with_features(encoders[0], examples, devices)
        rows[source] = cache[key]
    return rows


def _with_features(encoder: nn.Module, examples: Examples, devices: Devices) -> Examples:
    """Rows by falling length, so that little is computed for padding; then back in their order, packed end to end."""
    lengths = _lengths(examples)
    order = torch.argsort(lengths, descending=True, stable=True)
    pieces: list[tuple[Tensor, Tensor]] = []
    rest: dict[str, list[Tensor]] = {}
    for start in range(0, len(examples), _BATCH):
        batch = examples.batch(order[start : start + _BATCH]).to(devices.device)
        with torch.no_grad(), devices.autocast():
            computed = encoder.precompute(batch.inputs)  # ty: ignore[not-callable]
        pieces += zip(computed.pop("hidden").cpu(), computed.pop("attention_mask").bool().cpu(), strict=True)
        for name, tensor in computed.items():
            rest.setdefault(name, []).append(tensor.cpu())
    back = torch.argsort(order)
    rows = [pieces[i][0][pieces[i][1]] for i in back.tolist()]
    offsets = torch.tensor([0, *[len(row) for row in rows]]).cumsum(0)
    hidden = Ragged(torch.cat(rows), offsets)
    mask = Ragged(torch.ones(len(hidden.values), dtype=torch.int64), offsets)
    inputs: dict[str, Tensor | Ragged] = {name: torch.cat(tensors)[back] for name, tensors in rest.items()}
    return examples.with_inputs({**inputs, "hidden": hidden, "attention_mask": mask})


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
