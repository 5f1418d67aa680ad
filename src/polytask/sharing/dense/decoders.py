"""Decoders: from the maps of a pyramid to one map a task, of the task's own resolution."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from polytask.core.errors import BadValue
from polytask.sharing.encoders.levels import Levels
from polytask.sharing.encoders.pyramid import block, normalisation
from polytask.sharing.layers import TaskModules, seeded
from polytask.sharing.spec import DecoderSpec
from polytask.sharing.tape import note_features


class Decoder(nn.Module):
    """Every level through a 1x1 convolution, brought to the finest level's size and added up; then a 3x3 convolution.

    Source: the semantic branch of Kirillov et al. 2019, arXiv:1901.02446 (panoptic FPN).
    Departures: one convolution after the sum, in place of several before it.
    Cost: sum of channels x width x pixels over the levels, and 9 x width^2 x pixels of the finest, a row.
    """

    def __init__(self, channels: Sequence[int], width: int) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(nn.Conv2d(each, width, 1) for each in channels)
        self.norm = normalisation(width)
        self.mix = block(width, width)

    def forward(self, levels: Levels) -> tuple[Float[Tensor, "B width h w"], Levels]:
        """The map, and what was added up: each level by itself."""
        maps = [lateral(level) for lateral, level in zip(self.laterals, levels, strict=True)]
        total = maps[0]
        for each in maps[1:]:
            total = total + resized(each, tuple(total.shape[2:]))
        return self.mix(self.norm(total).relu()), maps


class Decoders(nn.Module):
    """A decoder a task.

    Args:
        encoder: gives a pyramid, and has been checked.
        tasks: those of the model, or what their outputs stand for by task.
        spec: as in a recipe.
        seed: of the start; a decoder's depends on its own task only.
        channels: of the levels that are read, where they are not the encoder's.
        make: a decoder from channels and width: `forward(levels) -> (map, its levels by themselves)`.

    Attributes:
        auxiliary: place -> width of the features there, for heads that help in training only.
        sizes: task -> height and width of its outputs, where they are maps.
    """

    def __init__(
        self,
        encoder: Any,
        tasks: Iterable[str],
        spec: DecoderSpec,
        seed: int,
        channels: Sequence[int] | None = None,
        make: Callable[[Sequence[int], int], nn.Module] = Decoder,
    ) -> None:
        super().__init__()
        channels = [shape[0] for shape in encoder.shapes] if channels is None else list(channels)
        self.width, self.shapes = spec.width, list(encoder.shapes)
        self.auxiliary = {f"level.{level}": spec.width for level in range(1, len(channels))}
        self.sizes = output_sizes(encoder, tasks, spec)
        self.decoders: TaskModules[nn.Module] = TaskModules()
        for task in tasks:
            with seeded(seed, "decoder", task):
                self.decoders[task] = make(channels, spec.width)

    def forward(self, pyramids: Mapping[str, Levels]) -> dict[str, Float[Tensor, "B width h w"]]:
        """{task: its map}, of the finest level's size, from {task: the levels that it reads}."""
        found = {}
        for task, levels in pyramids.items():
            found[task], maps = self.decoders[task](levels)
            if self.training:
                for level, each in enumerate(maps[1:], start=1):
                    note_features(f"level.{level}", task, each)
        return found

    def features(self, maps: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """{task: what its head reads}: [B, H, W, width] of the task's resolution; [B, width], the mean over the
        picture, for a task whose outputs are a row's."""
        return {
            task: resized(each, self.sizes[task]).movedim(1, -1) if task in self.sizes else each.mean(dim=(2, 3))
            for task, each in maps.items()
        }


def output_sizes(encoder: Any, tasks: Iterable[str], spec: DecoderSpec) -> dict[str, tuple[int, int]]:
    """{task: height and width of its outputs}, from the size of the image and the task's stride; where it is said what
    outputs stand for, of those that are maps."""
    height, width = encoder.size
    sizes: dict[str, tuple[int, int]] = {}
    for task in tasks:
        stride = spec.strides.get(task, 1)
        if isinstance(tasks, Mapping) and (tasks[task] is None or tasks[task].of_rows):
            if tasks[task] is not None and task in spec.strides:
                raise BadValue(f"model.decoder.strides of task {task!r}", stride, "none, as it has one label a row")
            continue
        if stride > min(height, width):
            where = f"model.decoder.strides of task {task!r}"
            raise BadValue(where, stride, f"at most the image's smaller side, {min(height, width)}")
        sizes[task] = (-(-height // stride), -(-width // stride))
    return sizes


def decoders_for(encoder: nn.Module, tasks: Iterable[str], spec: DecoderSpec | None, seed: int) -> Decoders | None:
    """Decoders where the encoder gives a pyramid, else None; BadValue for decoders of anything else."""
    gives = getattr(encoder, "gives", "vector")
    if gives == "pyramid":
        return Decoders(encoder, tasks, spec or DecoderSpec(), seed)
    refuse_decoder(gives, spec)
    return None


def refuse_decoder(gives: str, spec: DecoderSpec | None) -> None:
    """BadValue where a recipe has decoders and the encoder gives no pyramid."""
    if spec is not None:
        raise BadValue("model.decoder", spec.model_dump(), f"nothing, as the encoder gives a {gives} and no pyramid")


def resized(maps: Float[Tensor, "B C h w"], size: tuple[int, int]) -> Float[Tensor, "B C H W"]:
    """Linear between pixel centres."""
    if tuple(maps.shape[2:]) == size:
        return maps
    return functional.interpolate(maps, size=size, mode="bilinear", align_corners=False)


def resized_outputs(outputs: Tensor, size: tuple[int, int]) -> Tensor:
    """[B, h, w] or [B, h, w, outputs] with maps of that size."""
    if outputs.dim() == 3:
        return resized(outputs.unsqueeze(1), size).squeeze(1)
    return resized(outputs.movedim(-1, 1), size).movedim(1, -1)
