"""COLMAP models read, binary and text: cameras, poses and points."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from fedloom.core.errors import DataMissing
from fedloom.workloads.retinags.camera import Camera

_LENSES = ((0, "SIMPLE_PINHOLE", 3), (1, "PINHOLE", 4))
T = TypeVar("T")
_Points = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True, slots=True)
class Model:
    """What COLMAP found."""

    cameras: dict[str, Camera]
    """By the photograph's name, in the order of the names."""
    points: np.ndarray
    """(n, 3), float32."""
    colors: np.ndarray
    """(n, 3), float32 in [0, 1]."""


@dataclass(frozen=True, slots=True)
class _Lens:
    width: int
    height: int
    focal: tuple[float, float]
    center: tuple[float, float]

    @classmethod
    def of(cls, model: int | str, width: int, height: int, values: list[float]) -> _Lens:
        known = {key for number, name, _ in _LENSES for key in (number, name)}
        if model not in known:
            raise DataMissing(
                f"expected a camera of SIMPLE_PINHOLE (0) or PINHOLE (1), got {model}; undistort the pictures first"
            )
        if model in (0, "SIMPLE_PINHOLE"):
            values = [values[0], *values]
        fx, fy, cx, cy = values
        return cls(width, height, (fx, fy), (cx, cy))


_Pose = tuple[str, int, list[float], list[float]]


def read_model(folder: Path) -> Model:
    """Return the model in a folder with `cameras`, `images` and `points3D`, each `.bin`, or each `.txt`.

    Raises:
        DataMissing: a file is absent, cut short or malformed, or a camera is not an undistorted pinhole camera.
    """
    kinds = [kind for kind in ("bin", "txt") if (folder / f"cameras.{kind}").is_file()]
    if not kinds:
        raise DataMissing(f"{folder}: expected a COLMAP model, cameras.bin or cameras.txt, but neither is there")
    binary = kinds[0] == "bin"
    lenses = _read(folder / f"cameras.{kinds[0]}", _binary_lenses if binary else _text_lenses)
    poses = _read(folder / f"images.{kinds[0]}", _binary_poses if binary else _text_poses)
    points, colors = _read(folder / f"points3D.{kinds[0]}", _binary_points if binary else _text_points)
    found = dict[str, Camera]()
    for name, lens, turn, shift in sorted(poses):
        if lens not in lenses:
            raise DataMissing(f"{folder}: image {name} has camera {lens}, which is not among {sorted(lenses)}")
        found[name] = _camera(lenses[lens], turn, shift, f"{folder}: image {name}")
    return Model(found, points, colors)


def _read(path: Path, parse: Callable[[bytes], T]) -> T:
    try:
        return parse(path.read_bytes())
    except DataMissing as exc:
        raise DataMissing(f"{path}: {exc}") from exc
    except (OSError, struct.error, ValueError, IndexError) as exc:
        raise DataMissing(f"{path}: expected a file of a COLMAP model, complete and undamaged: {exc}") from exc


def _camera(lens: _Lens, turn: list[float], shift: list[float], where: str) -> Camera:
    q = np.array(turn)
    if not np.linalg.norm(q) > 0:
        raise DataMissing(f"{where}: expected a rotation as a quaternion, got {turn}")
    w, x, y, z = (float(each) for each in q / np.linalg.norm(q))
    rotation = (
        (1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        (2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        (2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    )
    first, second, third = shift
    return Camera(rotation, (first, second, third), lens.focal, lens.center, lens.width, lens.height).checked(where)


class _Bytes:
    def __init__(self, content: bytes) -> None:
        self.content, self.at = content, 0

    def take(self, layout: str) -> list[float]:
        found = struct.unpack_from("<" + layout, self.content, self.at)
        self.at += struct.calcsize("<" + layout)
        return list(found)

    def count(self, smallest: int) -> int:
        (count,) = self.take("Q")
        if count * smallest > len(self.content) - self.at:
            raise ValueError(f"{count} entries do not fit into the file's {len(self.content)} bytes")
        return int(count)

    def skip(self, size: int) -> None:
        if self.at + size > len(self.content):
            raise ValueError(f"the file ends after {len(self.content)} bytes")
        self.at += size

    def text(self) -> str:
        stop = self.content.index(b"\0", self.at)
        found = self.content[self.at : stop].decode()
        self.at = stop + 1
        return found


def _binary_lenses(content: bytes) -> dict[int, _Lens]:
    data, found = _Bytes(content), dict[int, _Lens]()
    for _ in range(data.count(24)):
        key, model, width, height = (int(each) for each in data.take("iiQQ"))
        found[key] = _Lens.of(model, width, height, data.take(f"{3 if model == 0 else 4}d"))
    return found


def _binary_poses(content: bytes) -> list[_Pose]:
    data, found = _Bytes(content), list[_Pose]()
    for _ in range(data.count(64)):
        _, *numbers, lens = data.take("I7dI")
        name = data.text()
        data.skip(24 * data.count(24))
        found.append((name, int(lens), numbers[:4], numbers[4:]))
    return found


def _binary_points(content: bytes) -> _Points:
    data, found = _Bytes(content), list[list[float]]()
    for _ in range(data.count(51)):
        _, *numbers, _ = data.take("Q3d3Bd")
        data.skip(8 * data.count(8))
        found.append(numbers)
    return _points(found)


def _lines(content: bytes) -> list[str]:
    return [line for line in content.decode().splitlines() if not line.startswith("#")]


def _text_lenses(content: bytes) -> dict[int, _Lens]:
    words = [line.split() for line in _lines(content) if line.strip()]
    return {
        int(key): _Lens.of(model, int(width), int(height), [float(each) for each in values])
        for key, model, width, height, *values in words
    }


def _text_poses(content: bytes) -> list[_Pose]:
    lines = _lines(content)
    while lines and not lines[-1].strip() and len(lines) % 2:
        lines.pop()
    found = list[_Pose]()
    for line in lines[::2]:
        _, *numbers, lens, name = line.split(maxsplit=9)
        values = [float(each) for each in numbers]
        if len(values) != 7:
            raise ValueError(f"expected a rotation and a translation, got {line!r}")
        found.append((name.strip(), int(lens), values[:4], values[4:]))
    return found


def _text_points(content: bytes) -> _Points:
    return _points([[float(each) for each in line.split()[1:7]] for line in _lines(content) if line.strip()])


def _points(numbers: list[list[float]]) -> _Points:
    table = np.array(numbers, float).reshape(len(numbers), 6)
    return table[:, :3].astype(np.float32), (table[:, 3:] / 255).astype(np.float32)
