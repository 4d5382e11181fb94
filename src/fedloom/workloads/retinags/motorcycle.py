"""Middlebury's motorcycle stereo pair, the real photographs that scikit-image carries."""

from __future__ import annotations

import numpy as np

from fedloom.core.errors import DataMissing
from fedloom.workloads.retinags.camera import Camera
from fedloom.workloads.retinags.photographs import reduced
from fedloom.workloads.retinags.scene import Scene, View

FOCAL, CENTER_X, CENTER_Y = 994.978, 311.193, 254.877
"""Of the pair as scikit-image has it (741 x 500), pixels; the left camera's principal point."""
OFFSET = 31.086
"""The right principal point is as much farther right, pixels."""
BASELINE = 0.193001
"""Distance of the cameras, metres."""


def read_motorcycle(downscale: int) -> Scene:
    """Return the pair: the left photograph to learn from, the right one held out, points from the disparity map.

    Lengths are metres; the left camera is at the origin.

    Args:
        downscale: whole factor that the photographs are reduced by.

    Raises:
        DataMissing: scikit-image or its data is absent.
    """
    try:
        from skimage.data import stereo_motorcycle

        left, right, disparity = stereo_motorcycle()
    except (ImportError, OSError) as exc:
        raise DataMissing("source 'motorcycle': needs scikit-image; install it with fedloom's extra 'splat'") from exc
    pictures = [reduced(each.astype(np.float32) / 255, downscale, "motorcycle") for each in (left, right)]
    views = [
        View(name, _camera(shift, center).reduced(downscale), picture)
        for name, shift, center, picture in zip(
            ("left", "right"), (0.0, -BASELINE), (CENTER_X, CENTER_X + OFFSET), pictures, strict=True
        )
    ]
    points, colors = _points(left, disparity)
    return Scene((views[0],), (views[1],), points, colors, source="scikit-image stereo_motorcycle").checked()


def _camera(shift: float, center: float) -> Camera:
    turn = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
    return Camera(turn, (shift, 0.0, 0.0), (FOCAL, FOCAL), (center + 0.5, CENTER_Y + 0.5), 741, 500)


def _points(left: np.ndarray, disparity: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the points (n, 3) of the pixels with a known disparity, and their colours."""
    rows, columns = np.nonzero(np.isfinite(disparity) & (disparity > 0))
    depth = BASELINE * FOCAL / (disparity[rows, columns] + OFFSET)
    x, y = (columns - CENTER_X) / FOCAL * depth, (rows - CENTER_Y) / FOCAL * depth
    return np.stack([x, y, depth], axis=1).astype(np.float32), (left[rows, columns] / 255).astype(np.float32)
