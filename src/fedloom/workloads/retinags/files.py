"""Scenes in files: a COLMAP model or `transforms.json`, beside the photographs."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np

from fedloom.core.errors import DataMissing
from fedloom.workloads.retinags.camera import Camera
from fedloom.workloads.retinags.colmap import read_model
from fedloom.workloads.retinags.photographs import read_photograph
from fedloom.workloads.retinags.ply import read_points
from fedloom.workloads.retinags.scene import Scene, View


def read_colmap(folder: Path, downscale: int, hold_out: int) -> Scene:
    """Return the scene of a folder with `images/` and a model in it, in `sparse/` or in `sparse/0/`.

    Args:
        folder: of the scene.
        downscale: whole factor that the photographs are reduced by.
        hold_out: every so many'th photograph, from the first, is held out; 0 holds out none.

    Raises:
        DataMissing: a file is absent or malformed, or the scene is invalid.
    """
    places = [folder / "sparse" / "0", folder / "sparse", folder]
    model = read_model(next((each for each in places if list(each.glob("cameras.*"))), places[0]))
    views = [
        _view(_below(folder / "images", name), name, camera, downscale, str(folder))
        for name, camera in model.cameras.items()
    ]
    return _scene(views, hold_out, (model.points, model.colors), f"COLMAP model in {folder.name}")


def read_transforms(folder: Path, downscale: int, hold_out: int) -> Scene:
    """Return the scene of a folder with `transforms.json` as NeRF's tools write it.

    Points are those of its `ply_file_path`, a point cloud. For the other arguments and errors, see `read_colmap`.
    """
    path = folder / "transforms.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        frames = sorted(content["frames"], key=lambda frame: str(frame["file_path"]))
        cloud = content.get("ply_file_path", "points3d.ply")
        views = list[View]()
        for frame in frames:
            name = str(frame["file_path"])
            file = _below(folder, name if Path(name).suffix else f"{name}.png")
            picture = read_photograph(file)
            camera = _nerf_camera({**content, **frame}, (picture.shape[1], picture.shape[0]), f"{path}: {name}")
            views.append(_view(file, name, camera, downscale, str(path)))
    except DataMissing:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
        raise DataMissing(f"{path}: expected NeRF's transforms.json with frames and a focal length: {exc!r}") from exc
    return _scene(views, hold_out, read_points(_below(folder, str(cloud))), f"transforms.json in {folder.name}")


def _nerf_camera(values: dict[str, object], size: tuple[int, int], where: str) -> Camera:
    width, height = (_number(values.get(key, size[i])) for i, key in enumerate(("w", "h")))
    given = "fl_x" in values
    fx = _number(values["fl_x"]) if given else width / (2 * math.tan(_number(values["camera_angle_x"]) / 2))
    distortion = {key: _number(values[key]) for key in ("k1", "k2", "k3", "p1", "p2") if key in values}
    if any(distortion.values()):
        raise DataMissing(f"{where}: expected undistorted photographs, got the distortion {distortion}")
    pose = np.array(values["transform_matrix"], float)
    if pose.shape not in ((4, 4), (3, 4)):
        raise DataMissing(f"{where}: expected a transform_matrix of 4 x 4 numbers, got shape {pose.shape}")
    turn = (pose[:3, :3] * [1, -1, -1]).T  # OpenGL's camera looks along -z, with y up
    shift = -turn @ pose[:3, 3]
    first, second, third = ((float(a), float(b), float(c)) for a, b, c in turn)
    return Camera(
        rotation=(first, second, third),
        translation=(float(shift[0]), float(shift[1]), float(shift[2])),
        focal=(fx, _number(values.get("fl_y", fx))),
        center=(_number(values.get("cx", width / 2)), _number(values.get("cy", height / 2))),
        width=int(width),
        height=int(height),
    ).checked(where)


def _below(folder: Path, name: str) -> Path:
    """Return a file of a folder.

    Raises:
        DataMissing: it would lie outside of the folder.
    """
    if not (folder / name).resolve().is_relative_to(folder.resolve()):
        raise DataMissing(f"{folder}: expected a file below this folder, got {name!r}")
    return folder / name


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"expected a number, got {value!r}")
    return float(value)


def _view(file: Path, name: str, camera: Camera, downscale: int, where: str) -> View:
    whole = read_photograph(file)
    if whole.shape[:2] != (camera.height, camera.width):
        raise DataMissing(
            f"{where}: {name}: expected a photograph of {camera.width} x {camera.height} pixels as its camera's, got "
            f"{whole.shape[1]} x {whole.shape[0]}"
        )
    picture = read_photograph(file, downscale)
    return View(name, camera.reduced(downscale), picture)


def _scene(views: list[View], hold_out: int, points: tuple[np.ndarray, np.ndarray], source: str) -> Scene:
    test = views[::hold_out] if hold_out else []
    train = [view for view in views if not any(view is each for each in test)]
    return Scene(tuple(train), tuple(test), *points, source=source).checked()
