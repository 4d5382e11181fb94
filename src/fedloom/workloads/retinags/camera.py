"""A pinhole camera."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from fedloom.core.errors import DataMissing

NEAR = 0.2
"""Smallest depth that is drawn, in the scene's units."""


@dataclass(frozen=True, slots=True)
class Camera:
    """A pinhole camera that looks along +z, with x to the right and y down.

    A point p has the camera coordinates t = rotation p + translation and the pixel coordinates
    (focal_x t_x / t_z + center_x, focal_y t_y / t_z + center_y); the first pixel's centre is (0.5, 0.5).
    """

    rotation: tuple[tuple[float, float, float], ...]
    translation: tuple[float, float, float]
    focal: tuple[float, float]
    """Pixels, horizontal and vertical."""
    center: tuple[float, float]
    """Principal point, pixels."""
    width: int
    height: int

    @property
    def pixels(self) -> int:
        """Return the number of pixels."""
        return self.width * self.height

    @property
    def position(self) -> tuple[float, float, float]:
        """Return the camera's centre in the scene."""
        r, t = self.rotation, self.translation
        x, y, z = (-sum(r[row][axis] * t[row] for row in range(3)) for axis in range(3))
        return x, y, z

    def checked(self, where: str) -> Camera:
        """Return the camera.

        Raises:
            DataMissing: a number is not finite, a focal length or a size is not positive, or the rotation is none.
        """
        r = np.array(self.rotation, float)
        numbers = [*r.ravel(), *self.translation, *self.focal, *self.center]
        if not all(math.isfinite(each) for each in numbers):
            raise DataMissing(f"{where}: expected finite numbers, got {self}")
        if min(self.width, self.height) < 1 or min(self.focal) <= 0:
            raise DataMissing(
                f"{where}: expected a picture of at least 1 x 1 pixels and positive focal lengths, got "
                f"{self.width} x {self.height} and {self.focal}"
            )
        if not np.allclose(r @ r.T, np.eye(3), atol=1e-3) or np.linalg.det(r) < 0:
            raise DataMissing(f"{where}: expected a rotation matrix, got {r.tolist()}")
        return self

    def reduced(self, factor: int) -> Camera:
        """Return the camera of the picture reduced by a whole factor, rows and columns beyond a multiple cut off."""
        return replace(
            self,
            focal=(self.focal[0] / factor, self.focal[1] / factor),
            center=(self.center[0] / factor, self.center[1] / factor),
            width=self.width // factor,
            height=self.height // factor,
        )


def looking(
    eye: np.ndarray, at: np.ndarray, field_of_view: float, size: tuple[int, int], down: tuple[float, ...] = (0, 1, 0)
) -> Camera:
    """Return a camera at `eye` that looks at `at`.

    Args:
        eye: (3,), its position.
        at: (3,), a point in the middle of its picture.
        field_of_view: horizontal, in radians.
        size: width and height in pixels.
        down: the direction that is down in the picture.
    """
    forward = (at - eye) / np.linalg.norm(at - eye)
    right = np.cross(np.array(down, float), forward)
    right /= np.linalg.norm(right)
    r = np.stack([right, np.cross(forward, right), forward])
    t = -r @ eye
    focal = size[0] / (2 * math.tan(field_of_view / 2))
    first, second, third = ((float(a), float(b), float(c)) for a, b, c in r)
    return Camera(
        rotation=(first, second, third),
        translation=(float(t[0]), float(t[1]), float(t[2])),
        focal=(focal, focal),
        center=(size[0] / 2, size[1] / 2),
        width=size[0],
        height=size[1],
    )
