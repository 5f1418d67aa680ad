"""Images: encoded bytes, paths of files, or arrays; float32 [C, H, W], integers divided by 255."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from polytask.core.errors import DataError, MissingExtra
from polytask.tasks.features.feature import Place
from polytask.tasks.features.options import ImageOptions

_CHANNELS = (1, 3)


class Image:
    """The input `image`. Channels and size are those of training; another size is an error unless `size` resizes it."""

    kind, key = "image", "image"

    def __init__(self, column: str, options: ImageOptions, root: Path | None = None) -> None:
        self.column, self.options, self.root = column, options, root
        self.columns: tuple[str, ...] = (column,)
        self.shape: tuple[int, ...] = ()

    def observe(self, frame: pl.DataFrame, place: Place) -> None:
        if not self.shape and len(frame):
            self.shape = self._images(frame.head(1), place).shape[1:]

    def finish(self, place: Place) -> None:
        pass

    def encode(self, frame: pl.DataFrame, place: Place) -> np.ndarray:
        return self._images(frame, place)

    def _images(self, frame: pl.DataFrame, place: Place) -> np.ndarray:
        series = frame[self.column]
        if series.null_count():
            raise DataError(f"{place.first(series.is_null())[1]}: column {self.column!r} has no image")
        if isinstance(series.dtype, pl.Array):
            images = self._from_arrays(series.to_numpy(), place)
        else:
            images = self._decoded(series, place)
        if self.shape and images.shape[1:] != self.shape:
            raise DataError(
                f"{place.where}: column {self.column!r} has images {images.shape[1:]}; the model takes {self.shape}"
            )
        return images

    def _from_arrays(self, array: np.ndarray, place: Place) -> np.ndarray:
        if self.options.size is not None:
            raise DataError(f"{place.where}: column {self.column!r} holds arrays, which `size` cannot resize")
        if array.ndim == 3:
            array = array[:, None]
        elif array.ndim == 4 and array.shape[3] in _CHANNELS and array.shape[1] not in _CHANNELS:
            array = array.transpose(0, 3, 1, 2)
        elif array.ndim != 4 or array.shape[1] not in _CHANNELS:
            raise DataError(
                f"{place.where}: column {self.column!r} has arrays {array.shape[1:]}; "
                "allowed: [H, W], [H, W, C], [C, H, W] with 1 or 3 channels"
            )
        return scaled(array)

    def _decoded(self, series: pl.Series, place: Place) -> np.ndarray:
        channels = self.options.channels or (self.shape[0] if self.shape else None)
        images: list[np.ndarray] = []
        for position, item in enumerate(series):
            image = self._open(item, position, place)
            channels = channels or (1 if image.mode in ("1", "L", "I;16") else 3)
            image = image.convert("L" if channels == 1 else "RGB")
            if self.options.size is not None:
                image = image.resize(self.options.size[::-1])
            array = np.asarray(image)
            expected = self.shape[1:] or (images[0].shape[:2] if images else array.shape[:2])
            if array.shape[:2] != tuple(expected):
                raise DataError(
                    f"{place.row(position)}: column {self.column!r} has size {array.shape[:2]}, not "
                    f"{tuple(expected)}; features: {{{self.column}: {{kind: image, size: [height, width]}}}} resizes"
                )
            images.append(array)
        if not images:
            return np.zeros((0, *self.shape), dtype=np.float32)
        stacked = np.stack(images)
        return scaled(stacked[:, None] if stacked.ndim == 3 else stacked.transpose(0, 3, 1, 2))

    def _open(self, item: bytes | str, position: int, place: Place) -> Any:
        try:
            from PIL import Image as Pillow
        except ImportError as error:
            raise MissingExtra("pillow", "images", "reading encoded images") from error
        try:
            image = Pillow.open(io.BytesIO(item) if isinstance(item, bytes) else (self.root or Path()) / item)
            image.load()
        except FileNotFoundError:
            looked = (self.root or Path()) / str(item)
            raise DataError(
                f"{place.row(position)}: column {self.column!r}: no such image file {str(looked)!r}; data.root (--root "
                "for new rows) names the folder where the paths start"
            ) from None
        except (OSError, SyntaxError) as error:
            found = f"file {item!r}" if isinstance(item, str) else f"{len(item)} bytes"
            raise DataError(
                f"{place.row(position)}: column {self.column!r} has no readable image ({found}): {error}"
            ) from error
        return image

    def to_json(self) -> dict[str, Any]:
        return {"column": self.column, **self.options.model_dump(), "shape": list(self.shape)}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Image":
        options = {key: values[key] for key in ImageOptions.model_fields}
        feature = cls(values["column"], ImageOptions(**options))
        feature.shape = tuple(values["shape"])
        return feature


def scaled(array: np.ndarray) -> np.ndarray:
    """float32; integers are divided by 255."""
    if np.issubdtype(array.dtype, np.floating):
        return array.astype(np.float32)
    return array.astype(np.float32) / np.float32(255)
