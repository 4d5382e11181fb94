"""Scenes and splats in files: read as written, and refused with the reason where they are damaged."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support_splats import random_splats

from fedloom.core.errors import DataMissing
from fedloom.workloads.retinags.camera import looking
from fedloom.workloads.retinags.colmap import read_model
from fedloom.workloads.retinags.files import read_colmap, read_transforms
from fedloom.workloads.retinags.motorcycle import read_motorcycle
from fedloom.workloads.retinags.ply import read_points, read_splats, write_splats
from fedloom.workloads.retinags.scene import visible
from fedloom.workloads.retinags.splats import FLOATS, from_points
from fedloom.workloads.retinags.synthetic import make_scene

HALF = 2**-0.5


def test_splats_written_are_read_again_and_lie_in_the_file_as_3dgs_has_them(tmp_path: Path) -> None:
    splats = {name: value.astype(np.float32) for name, value in random_splats(5, 0).items()}
    write_splats(tmp_path / "a.ply", splats)
    again = read_splats(tmp_path / "a.ply")
    assert all(np.array_equal(again[name], value) for name, value in splats.items())
    body = (tmp_path / "a.ply").read_bytes().partition(b"end_header\n")[2]
    table = np.frombuffer(body, "<f4").reshape(5, 62)
    assert FLOATS == 59 and table.shape[1] == FLOATS + 3
    np.testing.assert_array_equal(table[:, 6:9], splats["colors"])
    np.testing.assert_array_equal(table[:, 9 + 15], splats["harmonics"][:, 0, 1])  # all of red, then all of green


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: b[:-3], "expected 5 vertices of 248 bytes"),
        (lambda b: b.replace(b"property float opacity\n", b"property float glossy_\n"), r"without \['opacity'\]"),
        (lambda b: b.replace(b"float f_rest_44", b"float f_most_44"), "expected 0, 9, 24 or 45 fields"),
        (lambda b: b.replace(b"property float nx", b"property list uchar int nx"), "expected numbers"),
        (lambda b: b"not a ply", "expected a PLY file"),
        (lambda b: b.replace(b"little", b"middle"), "expected a format"),
        (lambda b: b.replace(b"vertex 5", b"vertex 0"), "at least one splat"),
        (lambda b: b[:-4] + np.float32(np.nan).tobytes(), "rotations of splat 4 is not finite"),
        (lambda b: b[:-16] + bytes(16), "rotations of splat 4 is zero"),
        (lambda b: b[:-20] + np.float32(90).tobytes() + b[-16:], "scales of splat 4"),
    ],
)
def test_a_foreign_or_damaged_file_of_splats_is_refused(
    change: Callable[[bytes], bytes], message: str, tmp_path: Path
) -> None:
    write_splats(tmp_path / "a.ply", {k: v.astype(np.float32) for k, v in random_splats(5, 0).items()})
    (tmp_path / "a.ply").write_bytes(change((tmp_path / "a.ply").read_bytes()))
    with pytest.raises(DataMissing, match=message):
        read_splats(tmp_path / "a.ply")


def test_point_clouds_are_read_from_ascii_and_big_endian_files(tmp_path: Path) -> None:
    head = "ply\nformat {} 1.0\nelement vertex 2\nproperty float x\nproperty float y\nproperty float z\n{}end_header\n"
    colors = "".join(f"property uchar {name}\n" for name in ("red", "green", "blue"))
    (tmp_path / "a.ply").write_text(head.format("ascii", colors) + "1 2 3 255 0 51\n4 5 6 0 0 0\n", encoding="ascii")
    points, shades = read_points(tmp_path / "a.ply")
    assert points.tolist() == [[1, 2, 3], [4, 5, 6]] and shades[0].tolist() == pytest.approx([1, 0, 0.2])
    body = np.array([[1, 2, 3], [4, 5, 6]], ">f4").tobytes()
    (tmp_path / "b.ply").write_bytes(head.format("binary_big_endian", "").encode() + body)
    points, shades = read_points(tmp_path / "b.ply")
    assert points.tolist() == [[1, 2, 3], [4, 5, 6]] and (shades == 0.5).all()


def write_text_model(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cameras.txt").write_text("# list\n1 PINHOLE 8 6 7 7.5 4 3\n", encoding="utf-8")
    (folder / "images.txt").write_text(
        f"# two lines each\n1 1 0 0 0 0.5 0 2 1 b.png\n1 2 -1\n2 {HALF} 0 {HALF} 0 0 0 3 1 a.png\n\n", encoding="utf-8"
    )
    (folder / "points3D.txt").write_text("7 0.1 0.2 0.3 255 51 0 0.5 1 0\n", encoding="utf-8")


def write_binary_model(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cameras.bin").write_bytes(struct.pack("<QiiQQ4d", 1, 1, 1, 8, 6, 7, 7.5, 4, 3))
    first = struct.pack("<I7dI", 1, 1, 0, 0, 0, 0.5, 0, 2, 1) + b"b.png\0" + struct.pack("<Q2dq", 1, 1.0, 2.0, -1)
    second = struct.pack("<I7dI", 2, HALF, 0, HALF, 0, 0, 0, 3, 1) + b"a.png\0" + struct.pack("<Q", 0)
    (folder / "images.bin").write_bytes(struct.pack("<Q", 2) + first + second)
    point = struct.pack("<Q3d3Bd", 7, 0.1, 0.2, 0.3, 255, 51, 0, 0.5) + struct.pack("<QII", 1, 1, 0)
    (folder / "points3D.bin").write_bytes(struct.pack("<Q", 1) + point)


def test_a_colmap_model_is_the_same_from_text_and_binary_files(tmp_path: Path) -> None:
    write_text_model(tmp_path / "text")
    write_binary_model(tmp_path / "binary")
    for name in ("text", "binary"):
        model = read_model(tmp_path / name)
        assert list(model.cameras) == ["a.png", "b.png"]
        assert model.cameras["b.png"].position == pytest.approx((-0.5, 0, -2))
        turned = model.cameras["a.png"]  # a quarter turn about y: its z axis is the scene's -x
        np.testing.assert_allclose(turned.rotation, [[0, 0, 1], [0, 1, 0], [-1, 0, 0]], atol=1e-12)
        assert (
            turned.focal == pytest.approx((7, 7.5))
            and turned.center == pytest.approx((4, 3))
            and (turned.width, turned.height) == (8, 6)
        )
        np.testing.assert_allclose(model.points, [[0.1, 0.2, 0.3]], rtol=1e-6)
        np.testing.assert_allclose(model.colors, [[1, 0.2, 0]], rtol=1e-6)


def test_every_cut_of_a_binary_model_is_refused(tmp_path: Path) -> None:
    for name in ("cameras.bin", "images.bin", "points3D.bin"):
        write_binary_model(tmp_path)
        content = (tmp_path / name).read_bytes()
        for size in range(0, len(content), 7):
            (tmp_path / name).write_bytes(content[:size])
            with pytest.raises(DataMissing, match=name):
                read_model(tmp_path)


def test_a_distorted_camera_and_an_absent_model_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataMissing, match=r"cameras\.bin or cameras\.txt"):
        read_model(tmp_path)
    write_text_model(tmp_path)
    (tmp_path / "cameras.txt").write_text("1 OPENCV 8 6 7 7 4 3 0 0 0 0\n", encoding="utf-8")
    with pytest.raises(DataMissing, match=r"SIMPLE_PINHOLE.*got OPENCV"):
        read_model(tmp_path)


def test_a_colmap_scene_needs_its_photographs_in_their_cameras_size(tmp_path: Path) -> None:
    write_text_model(tmp_path / "sparse" / "0")
    (tmp_path / "images").mkdir()
    Image.new("RGB", (8, 6), (255, 0, 51)).save(tmp_path / "images" / "a.png")
    with pytest.raises(DataMissing, match=r"b\.png: expected a picture"):
        read_colmap(tmp_path, 1, 0)
    Image.new("L", (8, 6), 51).save(tmp_path / "images" / "b.png")
    scene = read_colmap(tmp_path, 2, 2)
    assert [view.name for view in scene.test] == ["a.png"] and [view.name for view in scene.train] == ["b.png"]
    assert scene.test[0].photograph.shape == (3, 4, 3) and scene.test[0].camera.focal == pytest.approx((3.5, 3.75))
    np.testing.assert_allclose(scene.test[0].photograph[0, 0], [1, 0, 0.2], atol=1e-6)
    Image.new("RGB", (9, 6)).save(tmp_path / "images" / "b.png")
    with pytest.raises(DataMissing, match="expected a photograph of 8 x 6"):
        read_colmap(tmp_path, 1, 0)
    Image.new("I;16", (8, 6)).save(tmp_path / "images" / "b.png")
    with pytest.raises(DataMissing, match="8 bits a channel"):
        read_colmap(tmp_path, 1, 0)


def transforms(**more: object) -> dict[str, object]:
    pose = [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 4], [0, 0, 0, 1]]  # OpenGL: at z = 4, looking along -z
    return {"camera_angle_x": 1.0, "frames": [{"file_path": "./a", "transform_matrix": pose}], **more}


def test_transforms_are_turned_from_opengls_convention(tmp_path: Path) -> None:
    Image.new("RGB", (8, 6)).save(tmp_path / "a.png")
    write_splats(tmp_path / "points3d.ply", {k: v.astype(np.float32) for k, v in random_splats(5, 0).items()})
    (tmp_path / "transforms.json").write_text(json.dumps(transforms()), encoding="utf-8")
    (view,) = read_transforms(tmp_path, 1, 0).train
    assert view.camera.position == pytest.approx((0, 0, 4)) and view.camera.rotation[2] == pytest.approx((0, 0, -1))
    assert view.camera.focal[0] == pytest.approx(4 / np.tan(0.5))
    for wrong, message in (
        (transforms(k1=0.2), "undistorted"),
        (transforms(ply_file_path="../../points.ply"), "below this folder"),
        ({"frames": [{}]}, "frames and a focal length"),
        (transforms(camera_angle_x="wide"), "expected a number"),
        (transforms(fl_x=-3.0), "positive focal lengths"),
        (transforms(frames=[]), "at least one photograph"),
    ):
        (tmp_path / "transforms.json").write_text(json.dumps(wrong), encoding="utf-8")
        with pytest.raises(DataMissing, match=message):
            read_transforms(tmp_path, 1, 0)


def test_cameras_with_everything_behind_them_are_refused(tmp_path: Path) -> None:
    Image.new("RGB", (8, 6)).save(tmp_path / "a.png")
    behind = {k: v.astype(np.float32) for k, v in random_splats(5, 0).items()}
    behind["positions"][:, 2] += 30
    write_splats(tmp_path / "points3d.ply", behind)
    (tmp_path / "transforms.json").write_text(json.dumps(transforms()), encoding="utf-8")
    with pytest.raises(DataMissing, match="none of the 5 points is in front of a camera"):
        read_transforms(tmp_path, 1, 0)


def test_the_motorcycles_points_lie_where_both_photographs_show_them() -> None:
    pytest.importorskip("skimage")
    scene = read_motorcycle(4)
    left, right = scene.train[0], scene.test[0]
    assert left.photograph.shape == (125, 185, 3) and len(scene.points) > 300_000
    assert np.mean(visible(scene.points, left.camera)) > 0.99
    points, colors = scene.points[::97], scene.colors[::97]
    inside = visible(points, right.camera)
    t = points[inside] @ np.array(right.camera.rotation).T + np.array(right.camera.translation)
    f, c = right.camera.focal, right.camera.center
    u, v = (f[0] * t[:, 0] / t[:, 2] + c[0]).astype(int), (f[1] * t[:, 1] / t[:, 2] + c[1]).astype(int)
    right_way = np.abs(right.photograph[v, u] - colors[inside]).mean()
    wrong_way = np.abs(right.photograph[v, (u + 12) % 185] - colors[inside]).mean()
    assert right_way < 0.09 < wrong_way


def test_a_synthetic_scene_comes_from_its_generator_alone() -> None:
    first, second = (make_scene(2, 1, (16, 12), 60, np.random.default_rng(3)) for _ in range(2))
    assert np.array_equal(first.train[1].photograph, second.train[1].photograph)
    assert first.train[0].photograph.max() > 0.3 and len(first.test) == 1
    assert first.thinned(7, np.random.default_rng(0)).points.shape == (7, 3)


def test_first_splats_are_as_wide_as_their_neighbours_are_far() -> None:
    made = from_points(np.array([[0, 0, 0], [1, 0, 0], [0, 2, 0], [0, 0, 2]], float), np.full((4, 3), 0.5))
    assert np.exp(made["scales"][0, 0]) == pytest.approx(np.sqrt((1 + 4 + 4) / 3))
    assert from_points(np.zeros((1, 3)), np.zeros((1, 3)))["scales"].shape == (1, 3)
    with pytest.raises(DataMissing, match="at least one"):
        from_points(np.zeros((0, 3)), np.zeros((0, 3)))
    with pytest.raises(DataMissing, match="point 1 is not finite"):
        from_points(np.array([[0, 0, 0], [0, np.inf, 0]]), np.zeros((2, 3)))


def test_a_camera_looks_where_it_should() -> None:
    camera = looking(np.array([0.0, -1.0, -2.0]), np.array([0.0, 0.0, 1.0]), 0.9, (20, 10))
    np.testing.assert_allclose(camera.position, [0, -1, -2], atol=1e-12)
    assert visible(np.array([[0.0, 0.0, 1.0], [0, 0, -4.0]]), camera).tolist() == [True, False]
