"""`scenes:` generated pictures of spheres, boxes and cylinders in a room, with four maps of labels.

A pinhole camera looks along z, y points down. What a pixel shows, how far away it is, which way it faces and where one
thing ends are exact, since they come from the rays that make the picture. Every number of a picture depends on the
seed, the split and the picture's own number alone, so more pictures or another order change none.
"""

from collections.abc import Mapping
from typing import Annotated, NamedTuple

import numpy as np
import polars as pl

from polytask.core.noise import Noise
from polytask.tasks.data_spec import SceneSpec

DEFAULT_ROWS = {"train": 1000, "valid": 250, "test": 250}
CLASSES = ("floor", "wall", "sphere", "box", "cylinder")
ABSENT = -1  # the label of a pixel without a class or edge; without a depth or normal it is 0
_FLOOR, _CHUNK, _CELL = 1.0, 64, 4
_LIGHT = np.array([-0.45, -0.75, -0.5]) / np.linalg.norm([0.45, 0.75, 0.5])  # from the surface to the light

Maps = Annotated[np.ndarray, "[N, H, W]"]


class Hits(NamedTuple):
    """Where rays meet a surface: depth [N, H, W], infinite where they miss it; the surface's normals [N, H, W, 3]."""

    depth: np.ndarray
    normals: np.ndarray


def scenes(spec: SceneSpec, rows: Mapping[str, int], seed: int) -> pl.DataFrame:
    """Columns image ([H, W, 3] uint8), segmentation, depth, normals, edges, split."""
    frames = []
    for split, count in (DEFAULT_ROWS | dict(rows)).items():
        noise = Noise(seed, "scenes", split)
        parts = [_rendered(spec, noise, start, min(_CHUNK, count - start)) for start in range(0, count, _CHUNK)]
        columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        series = [pl.Series(name, values) for name, values in columns.items()]
        frames.append(pl.DataFrame([*series, pl.Series("split", [split] * count)]))
    return pl.concat(frames)


def _rendered(spec: SceneSpec, noise: Noise, start: int, count: int) -> dict[str, np.ndarray]:
    """Pictures start ... start + count - 1."""
    height, width = spec.size
    room = _draws(noise, "room", start, count, 7)
    rays = _rays(height, width)
    depth, normals, thing = _room(rays, room)
    kinds = np.stack([np.zeros(count), np.ones(count)], axis=1).astype(np.int64)  # thing -> class
    colours = [0.25 + 0.5 * room[:, 1:4], 0.25 + 0.5 * room[:, 4:7]]
    for number in range(spec.objects):
        draw = _draws(noise, f"object {number}", start, count, 9)
        kind = 2 + (draw[:, 0] * 3).astype(np.int64).clip(max=2)
        found = _object(rays, kind, draw)
        nearer = found.depth < depth
        depth = np.where(nearer, found.depth, depth)
        normals = np.where(nearer[..., None], found.normals, normals)
        thing = np.where(nearer, number + 2, thing)
        kinds = np.concatenate([kinds, kind[:, None]], axis=1)
        colours.append(0.2 + 0.8 * draw[:, 6:9])
    labels = {
        "segmentation": kinds[np.arange(count)[:, None, None], thing].astype(np.int8),
        "depth": depth.astype(np.float32),
        "normals": normals.astype(np.float32),
        "edges": edges_of(thing).astype(np.int8),
    }
    image = _shaded(np.stack(colours, axis=1), thing, normals, noise, start)
    return {"image": image, **_with_holes(labels, spec.missing, noise, start)}


def _draws(noise: Noise, what: str, start: int, count: int, numbers: int) -> np.ndarray:
    """[count, numbers] in [0, 1), the same for a picture wherever it stands in a chunk."""
    return noise.child(what).uniform(count * numbers, start * numbers).reshape(count, numbers)


def _rays(height: int, width: int) -> np.ndarray:
    """[H, W, 3]: the direction of each pixel's ray, with z = 1; the longer side sees 45 degrees to either side."""
    scale = 2 / max(height, width)
    y, x = np.meshgrid(np.arange(height) - (height - 1) / 2, np.arange(width) - (width - 1) / 2, indexing="ij")
    return np.stack([x * scale, y * scale + 0.15, np.ones_like(x)], axis=-1)


def _room(rays: np.ndarray, room: np.ndarray) -> tuple[Maps, np.ndarray, Maps]:
    """Depth, normals and things (0 floor, 1 wall) of empty rooms; the first draw says how far away the wall is."""
    wall = (5 + 2 * room[:, 0])[:, None, None]
    floor = np.where(rays[..., 1] > 0, _FLOOR / np.maximum(rays[..., 1], 1e-9), np.inf)[None]
    is_floor = floor < wall
    depth = np.where(is_floor, floor, wall)
    normals = np.where(is_floor[..., None], np.array([0.0, -1.0, 0.0]), np.array([0.0, 0.0, -1.0]))
    return depth, normals, np.where(is_floor, 0, 1)


def _object(rays: np.ndarray, kind: np.ndarray, draw: np.ndarray) -> Hits:
    """What the rays meet of one object a picture, which stands on the floor.

    Its draws are kind, x, z, size, height, turn, and three for its colour.
    """
    z, size = 2.2 + 2.5 * draw[:, 2], 0.3 + 0.4 * draw[:, 3]
    x = (draw[:, 1] * 2 - 1) * 0.7 * z
    height = size * (0.7 + 1.6 * draw[:, 4])
    hits = [
        sphere(rays, np.stack([x, _FLOOR - size, z], axis=1), size),
        box(rays, x, z, size, height, draw[:, 5] * np.pi / 2),
        cylinder(rays, x, z, size, height),
    ]
    chosen = (kind - 2)[:, None, None]
    depth = np.select([chosen == place for place in range(3)], [hit.depth for hit in hits])
    normals = np.select([chosen[..., None] == place for place in range(3)], [hit.normals for hit in hits])
    return Hits(depth, normals)


def sphere(rays: np.ndarray, centre: np.ndarray, radius: np.ndarray) -> Hits:
    """The nearer solution of |t ray - centre| = radius."""
    a = (rays**2).sum(-1)[None]
    b = np.einsum("hwk,nk->nhw", rays, centre)
    rest = b**2 - a * ((centre**2).sum(-1) - radius**2)[:, None, None]
    depth = np.where(rest > 0, (b - np.sqrt(np.maximum(rest, 0))) / a, np.inf)
    points = np.where(np.isfinite(depth), depth, 0.0)[..., None] * rays
    return Hits(depth, (points - centre[:, None, None]) / radius[:, None, None, None])


def box(rays: np.ndarray, x: np.ndarray, z: np.ndarray, half: np.ndarray, height: np.ndarray, turn: np.ndarray) -> Hits:
    """Where the ray has entered all three pairs of faces, if it has then left none."""
    cos, sin = np.cos(turn), np.sin(turn)
    turned = np.stack(
        [  # rows: the box's own axes
            np.stack([cos, np.zeros_like(cos), -sin], axis=1),
            np.stack([np.zeros_like(cos), np.ones_like(cos), np.zeros_like(cos)], axis=1),
            np.stack([sin, np.zeros_like(cos), cos], axis=1),
        ],
        axis=1,
    )
    direction = np.einsum("nij,hwj->nhwi", turned, rays)
    direction = np.where(np.abs(direction) < 1e-9, 1e-9, direction)
    origin = -np.einsum("nij,nj->ni", turned, np.stack([x, _FLOOR - height / 2, z], axis=1))[:, None, None]
    extent = np.stack([half, height / 2, half], axis=1)[:, None, None]
    one, other = (-extent - origin) / direction, (extent - origin) / direction
    enter, leave = np.minimum(one, other), np.maximum(one, other)
    depth, axis = enter.max(-1), enter.argmax(-1)
    depth = np.where((depth < leave.min(-1)) & (depth > 0), depth, np.inf)
    own = -np.sign(direction) * (axis[..., None] == np.arange(3))
    return Hits(depth, np.einsum("nij,nhwi->nhwj", turned, own))


def cylinder(rays: np.ndarray, x: np.ndarray, z: np.ndarray, radius: np.ndarray, height: np.ndarray) -> Hits:
    """The nearer of the side, between floor and top, and the top seen from above."""
    x, z, radius, top = (each[:, None, None] for each in (x, z, radius, _FLOOR - height))
    a = (rays[..., 0] ** 2 + 1)[None]
    b = rays[..., 0] * x + z
    rest = b**2 - a * (x**2 + z**2 - radius**2)
    side = np.where(rest > 0, (b - np.sqrt(np.maximum(rest, 0))) / a, np.inf)
    at = np.where(np.isfinite(side), side, 0.0)
    side = np.where((at * rays[..., 1] >= top) & (at * rays[..., 1] <= _FLOOR), side, np.inf)
    down = np.where(np.abs(rays[..., 1]) < 1e-9, 1e-9, rays[..., 1])
    lid = np.where((top / down > 0) & (top > 0), top / down, np.inf)
    at_lid = np.where(np.isfinite(lid), lid, 0.0)
    lid = np.where((at_lid * rays[..., 0] - x) ** 2 + (at_lid - z) ** 2 <= radius**2, lid, np.inf)
    round_normals = np.stack([(at * rays[..., 0] - x) / radius, np.zeros_like(at), (at - z) / radius], axis=-1)
    normals = np.where((lid < side)[..., None], np.array([0.0, -1.0, 0.0]), round_normals)
    return Hits(np.minimum(side, lid), normals)


def edges_of(thing: np.ndarray) -> np.ndarray:
    """1 where one of the four pixels beside shows another thing."""
    edges = np.zeros(thing.shape, dtype=bool)
    across, down = thing[:, :, 1:] != thing[:, :, :-1], thing[:, 1:] != thing[:, :-1]
    edges[:, :, :-1] |= across
    edges[:, :, 1:] |= across
    edges[:, :-1] |= down
    edges[:, 1:] |= down
    return edges


def _shaded(colours: np.ndarray, thing: np.ndarray, normals: np.ndarray, noise: Noise, start: int) -> np.ndarray:
    """[N, H, W, 3] uint8: each thing's colour, lit from one side, and a little noise in each pixel."""
    light = 0.35 + 0.65 * np.maximum(normals @ _LIGHT, 0)
    own = colours[np.arange(len(thing))[:, None, None], thing]
    grain = noise.child("grain").normal(own.size, start * own[0].size).reshape(own.shape)
    return np.rint(255 * np.clip(own * light[..., None] + 0.03 * grain, 0, 1)).astype(np.uint8)


def _with_holes(labels: dict[str, np.ndarray], missing: float, noise: Noise, start: int) -> dict[str, np.ndarray]:
    """The maps without the labels of some cells of 4 x 4 pixels, other cells for each map."""
    if missing == 0:
        return labels
    found = {}
    for name, values in labels.items():
        count, height, width = values.shape[:3]
        rows, columns = -(-height // _CELL), -(-width // _CELL)
        cells = _draws(noise, f"holes {name}", start, count, rows * columns).reshape(count, rows, columns) < missing
        hole = cells.repeat(_CELL, axis=1).repeat(_CELL, axis=2)[:, :height, :width]
        absent = values.dtype.type(ABSENT if values.dtype.kind == "i" else 0)
        found[name] = np.where(hole if values.ndim == 3 else hole[..., None], absent, values)
    return found
