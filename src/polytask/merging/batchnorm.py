"""BatchNorm's statistics after a merge: those of the inputs' models are not those of the merged weights.

Source      Jordan et al. 2022, arXiv:2211.08403 (REPAIR), names the collapse of variance in merged networks and sets
            the statistics anew on training batches; so do Izmailov et al. 2018, arXiv:1803.05407, for averaged weights.
Departures  none in the reset; REPAIR's rescaling of networks without BatchNorm is not here.
Cost        a forward pass a batch.
"""

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from polytask.checkpoints.checkpoint import CARD
from polytask.checkpoints.directory import TEMPORARY, json_bytes, read_json, write_file
from polytask.checkpoints.hashing import identified
from polytask.core.errors import BadValue, MissingInput, UnknownName
from polytask.merging.weights.safetensors import SafetensorsFile


def recalibrate_batchnorm(
    model: nn.Module, batches: Iterable[Any], forward: Callable[[nn.Module, Any], Any] | None = None
) -> list[str]:
    """Sets every BatchNorm layer's running statistics to the mean over the batches, and returns the layers' names.

    Nothing else of the model changes: other layers are in evaluation mode meanwhile, and every mode is given back.

    Args:
        model: merged; changed in place.
        batches: a few training batches are enough; a hundred rows each or more.
        forward: what passes a batch through; by default `model(batch)`.

    Raises:
        MissingInput: no batch.
    """
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, _BatchNorm)}
    layers = {name: layer for name, layer in layers.items() if layer.running_mean is not None}
    modes = {module: module.training for module in model.modules()}
    momenta = {layer: layer.momentum for layer in layers.values()}
    seen = 0
    try:
        model.eval()
        for layer in layers.values():
            layer.reset_running_stats()
            layer.momentum = None  # the mean over all batches instead of a moving average
            layer.train()
        with torch.no_grad():
            for batch in batches:
                model(batch) if forward is None else forward(model, batch)
                seen += 1
    finally:
        for layer, momentum in momenta.items():
            layer.momentum = momentum
        for module, training in modes.items():
            module.training = training
    if layers and not seen:
        raise MissingInput("recalibrating BatchNorm needs at least one batch; its statistics are now those of no data")
    return list(layers)


def replace_tensors(directory: str | Path, values: Mapping[str, Tensor]) -> None:
    """Puts values into a merged directory's weights; each file is at every moment the old one or the new one.

    Args:
        directory: as `merge` wrote it.
        values: tensors by name, of the shapes that are there; they are rounded to the types that are there.

    Raises:
        UnknownName: a name that no file holds.
        BadValue: another shape.
    """
    directory = Path(directory)
    files = {path: SafetensorsFile(path) for path in sorted(directory.glob("*.safetensors"))}
    homes = {name: path for path, file in files.items() for name in file.entries}
    for name, value in values.items():
        if name not in homes:
            raise UnknownName("tensor", name, homes, str(directory))
        shape = files[homes[name]].entries[name].shape
        if tuple(value.shape) != shape:
            raise BadValue(f"the shape of {name!r}", tuple(value.shape), f"{shape}, as in {homes[name]}")
    changed = [path for path in files if any(homes[name] == path for name in values)]
    for path in changed:
        _rewrite(path, files[path], {name: value for name, value in values.items() if homes[name] == path})
    if (directory / CARD).is_file():
        card = read_json(directory / CARD)
        listed = {**card.get("files", {}), **{path.name: identified(path) for path in changed}}
        write_file(directory / CARD, json_bytes({**card, "files": listed}))


def _rewrite(path: Path, file: SafetensorsFile, values: Mapping[str, Tensor]) -> None:
    temporary = path.with_name(f"{TEMPORARY}{path.name}-{os.getpid()}")
    try:
        with path.open("rb") as source, temporary.open("wb") as target:
            while block := source.read(1 << 24):
                target.write(block)
            for name, value in values.items():
                entry = file.entries[name]
                target.seek(entry.start)
                content = value.detach().cpu().to(entry.dtype).contiguous().reshape(-1)
                target.write(content.view(torch.uint8).numpy().tobytes())
            target.flush()
            os.fsync(target.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
