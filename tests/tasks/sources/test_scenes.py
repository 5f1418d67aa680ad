"""Generated scenes: the maps are those of the geometry, and a picture depends on its own number alone."""

import re
from typing import Any

import numpy as np
import polars as pl
import pytest

from polytask.core.errors import PolytaskError
from polytask.core.validation import validated
from polytask.tasks.data_spec import DataSpec, SceneSpec
from polytask.tasks.sources.opening import open_rows
from polytask.tasks.sources.scenes import box, cylinder, edges_of, scenes, sphere

FEW = {"train": 5, "valid": 2, "test": 1}
AHEAD = np.array([[[0.0, 0.1, 1.0], [0.0, 0.3, 1.0]]])  # two rays


def one(*values: float) -> list[np.ndarray]:
    return [np.array([value]) for value in values]


def made(seed: int = 0, rows: dict[str, int] = FEW, **options: Any) -> dict[str, np.ndarray]:
    frame = scenes(SceneSpec(**{"size": (12, 16), **options}), rows, seed)
    return {name: frame[name].to_numpy() for name in frame.columns}


def test_a_ray_meets_a_sphere_where_the_formula_says() -> None:
    hits = sphere(np.array([[[0.0, 0.0, 1.0], [2.0, 0.0, 1.0]]]), np.array([[0.0, 0.0, 4.0]]), np.array([1.5]))
    assert hits.depth[0, 0].tolist() == [2.5, np.inf]
    assert hits.normals[0, 0, 0].tolist() == [0, 0, -1]


def test_a_ray_meets_a_box_in_front_and_one_turned_by_45_degrees_at_its_edge() -> None:
    straight = box(AHEAD, *one(0.0, 4.0, 0.5, 2.0, 0.0))
    np.testing.assert_allclose(straight.depth[0, 0], [3.5, np.inf])  # the second ray is below the floor by then
    np.testing.assert_allclose(straight.normals[0, 0, 0], [0, 0, -1], atol=1e-12)
    turned = box(AHEAD + np.array([0.01, 0, 0]), *one(0.0, 4.0, 0.5, 2.0, np.pi / 4))
    assert turned.depth[0, 0, 0] == pytest.approx(4 - 0.5 * 2**0.5, abs=0.05)
    np.testing.assert_allclose(np.abs(turned.normals[0, 0, 0]), [0.5**0.5, 0, 0.5**0.5], atol=1e-9)


def test_a_ray_meets_the_side_or_the_lid_of_a_cylinder() -> None:
    side = cylinder(AHEAD, *one(0.0, 4.0, 0.5, 2.0))
    np.testing.assert_allclose(side.depth[0, 0], [3.5, np.inf])
    np.testing.assert_allclose(side.normals[0, 0, 0], [0, 0, -1], atol=1e-12)
    flat = cylinder(np.array([[[0.0, 0.2, 1.0]]]), *one(0.0, 4.0, 0.5, 0.2))  # its lid is at y = 0.8, met at z = 4
    assert flat.depth[0, 0, 0] == pytest.approx(4)
    assert flat.normals[0, 0, 0].tolist() == [0, -1, 0]


def test_every_pixel_has_a_class_a_depth_and_a_unit_normal_that_faces_the_camera() -> None:
    found = made(rows={"train": 40, "valid": 1, "test": 1}, size=(24, 32))
    assert set(np.unique(found["segmentation"])) == {0, 1, 2, 3, 4}
    assert found["image"].shape == (42, 24, 32, 3)
    assert found["depth"].min() > 1
    assert found["depth"].max() <= 7
    np.testing.assert_allclose(np.linalg.norm(found["normals"], axis=-1), 1, rtol=1e-5)
    scale = 2 / 32
    y, x = np.meshgrid((np.arange(24) - 11.5) * scale + 0.15, (np.arange(32) - 15.5) * scale, indexing="ij")
    towards = (found["normals"] * np.stack([x, y, np.ones_like(x)], axis=-1)).sum(-1)
    assert towards.max() <= 1e-5


def test_normals_are_those_of_the_depth() -> None:
    """On floor, wall and the flat sides of boxes a step to the side stays in the plane that the normal says."""
    found = made(rows={"train": 6, "valid": 1, "test": 1}, size=(24, 32))
    scale = 2 / 32
    y, x = np.meshgrid((np.arange(24) - 11.5) * scale + 0.15, (np.arange(32) - 15.5) * scale, indexing="ij")
    points = np.stack([x, y, np.ones_like(x)], axis=-1) * found["depth"][..., None]
    step = points[:, :, 1:] - points[:, :, :-1]
    flat = np.isin(found["segmentation"], (0, 1, 3))[:, :, :-1] & (found["edges"][:, :, :-1] == 0)
    same = (np.abs(found["normals"][:, :, 1:] - found["normals"][:, :, :-1]).max(-1) < 1e-6) & flat
    off = np.abs((step * found["normals"][:, :, :-1]).sum(-1))[same]
    assert len(off) > 1000
    assert off.max() < 1e-4


def test_edges_are_where_things_end() -> None:
    things = np.array([[[0, 0, 3], [0, 0, 3]], [[1, 1, 1], [2, 1, 1]]])
    assert edges_of(things).tolist() == [
        [[False, True, True], [False, True, True]],
        [[True, False, False], [True, True, False]],
    ]


def test_a_picture_depends_on_seed_split_and_its_own_number_alone() -> None:
    few, many = made(missing=0.3), made(missing=0.3, rows={"train": 70, "valid": 2, "test": 1})
    for name in ("image", "segmentation", "depth", "normals", "edges"):
        assert np.array_equal(few[name][:5], many[name][:5]), name
        assert np.array_equal(few[name][5:], many[name][70:]), name
    assert not np.array_equal(few["image"], made(seed=1)["image"])
    assert not np.array_equal(few["image"][0], few["image"][5])  # the first of training and of validation


def test_missing_labels_are_cells_and_other_cells_for_each_map() -> None:
    whole, holed = made(size=(24, 32)), made(size=(24, 32), missing=0.25)
    assert np.array_equal(whole["image"], holed["image"])
    absent = {
        "segmentation": holed["segmentation"] == -1,
        "depth": holed["depth"] == 0,
        "normals": (holed["normals"] == 0).all(-1),
        "edges": holed["edges"] == -1,
    }
    for name, holes in absent.items():
        assert 0.2 < holes.mean() < 0.3, name
        assert np.array_equal(holes[:, ::4, ::4].repeat(4, axis=1).repeat(4, axis=2), holes)
        assert np.array_equal(whole[name][~holes], holed[name][~holes])
        assert name == "depth" or not np.array_equal(holes, absent["depth"])


@pytest.mark.parametrize("size", [(4, 4), (7, 5), (9, 40)])
def test_any_size(size: tuple[int, int]) -> None:
    found = made(size=size, missing=0.5, objects=1)
    assert found["edges"].shape == (8, *size)
    assert found["normals"].shape == (8, *size, 3)


def test_a_recipe_names_them() -> None:
    spec = validated(DataSpec, {"scenes": {"size": [12, 16]}, "rows": FEW}, "recipe.data")
    rows = open_rows("data", spec.named_sources()["data"], [], data_dir=None, beside=None)
    assert len(rows) == 8
    assert rows.read(["split"])["split"].to_list() == ["train"] * 5 + ["valid"] * 2 + ["test"]
    assert rows.schema["depth"] == pl.Array(pl.Float32, (12, 16))


@pytest.mark.parametrize(
    "bad, message",
    [
        ({"scenes": {"size": [3, 16]}}, "recipe.data.scenes.size.0 is 3; allowed: greater than or equal to 4"),
        ({"scenes": {"objects": 0}}, "recipe.data.scenes.objects is 0; allowed"),
        ({"scenes": {"missing": 1}}, "recipe.data.scenes.missing is 1; allowed: less than 1"),
        ({"scenes": {"sise": 3}}, "no key 'sise' (did you mean 'size'?)"),
        (
            {"scenes": {}, "table": "x.csv"},
            "a source has one of table, arrays, images, builtin, scenes, synthetic, sensor, graphs, sources",
        ),
        ({"scenes": {}, "rows": 5}, "scenes have their own split, and take rows as"),
    ],
)
def test_mistakes(bad: dict[str, Any], message: str) -> None:
    with pytest.raises(PolytaskError, match=re.escape(message)):
        validated(DataSpec, bad, "recipe.data")
