"""The five models on which a step is measured: a trunk, a linear head a task, random data."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

CLASSES = 10


@dataclass(frozen=True)
class Problem:
    """A model that is measured.

    Attributes:
        title: for the table.
        tasks: how many.
        trunk: makes what the tasks share.
        width: of its output.
        inputs: draws a batch.
    """

    title: str
    tasks: int
    trunk: Callable[[], nn.Module]
    width: int
    inputs: Callable[[], Tensor]

    def model(self) -> nn.ModuleDict:
        """The same for every side."""
        torch.manual_seed(0)
        return nn.ModuleDict({"trunk": self.trunk(), "heads": nn.ModuleList(self._heads())})

    def _heads(self) -> list[nn.Module]:
        return [nn.Linear(self.width, CLASSES) for _ in range(self.tasks)]

    def losses(self, model: nn.ModuleDict) -> tuple[dict[str, Tensor], Tensor]:
        """(task -> loss on a new batch, what the heads read)."""
        inputs = self.inputs()
        labels = torch.randint(CLASSES, (self.tasks, len(inputs)))
        features = model["trunk"](inputs)
        heads = zip(model["heads"], labels, strict=True)
        return {str(i): nn.functional.cross_entropy(head(features), y) for i, (head, y) in enumerate(heads)}, features


def _mlp() -> nn.Module:
    sizes = [256, 640, 640, 640, 512]
    return nn.Sequential(*(layer for n, m in itertools.pairwise(sizes) for layer in (nn.Linear(n, m), nn.ReLU())))


class _Block(nn.Module):
    """Two convolutions and a shortcut, as in a ResNet-18."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(before, after, 3, stride, 1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(),
            nn.Conv2d(after, after, 3, 1, 1, bias=False),
            nn.BatchNorm2d(after),
        )
        is_same = before == after and stride == 1
        self.shortcut = (
            nn.Identity()
            if is_same
            else nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))
        )

    def forward(self, x: Tensor) -> Tensor:
        return (self.body(x) + self.shortcut(x)).relu()


def _resnet() -> nn.Module:
    widths = [16, 16, 32, 64, 128]
    blocks = [
        block
        for i, (before, after) in enumerate(itertools.pairwise(widths))
        for block in (_Block(before, after, 1 if i == 0 else 2), _Block(after, after, 1))
    ]
    first = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    return nn.Sequential(*first, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten())


class _Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(256, 8, 1024, dropout=0.0, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 4, norm=nn.LayerNorm(256), enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).mean(1)


def _images() -> Tensor:
    return torch.randn(64, 3, 32, 32)


PROBLEMS = {
    "mlp8": Problem("MLP, batch 256, T = 8", 8, _mlp, 512, lambda: torch.randn(256, 256)),
    "mlp40": Problem("MLP, batch 256, T = 40", 40, _mlp, 512, lambda: torch.randn(256, 256)),
    "resnet3": Problem("ResNet, batch 64, T = 3", 3, _resnet, 128, _images),
    "resnet8": Problem("ResNet, batch 64, T = 8", 8, _resnet, 128, _images),
    "transformer4": Problem("transformer, batch 32, T = 4", 4, _Transformer, 256, lambda: torch.randn(32, 64, 256)),
}
