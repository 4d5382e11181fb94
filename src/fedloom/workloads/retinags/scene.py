"""A scene: photographs with their cameras, and points to start from."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from fedloom.core.errors import DataMissing
from fedloom.workloads.retinags.camera import NEAR, Camera


@dataclass(frozen=True, slots=True)
class View:
    """One photograph."""

    name: str
    camera: Camera
    photograph: np.ndarray
    """(height, width, 3), float32 in [0, 1]."""


@dataclass(frozen=True, slots=True)
class Scene:
    """Photographs of one scene."""

    train: tuple[View, ...]
    test: tuple[View, ...]
    points: np.ndarray
    """(n, 3), float32."""
    colors: np.ndarray
    """(n, 3), float32 in [0, 1]."""
    source: str
    """What it was read or made from."""

    @property
    def extent(self) -> float:
        """Return 1.1 times the largest distance of a training camera from their mean; 1 for a single camera."""
        eyes = np.array([view.camera.position for view in self.train])
        reach = float(np.linalg.norm(eyes - eyes.mean(0), axis=1).max())
        return 1.1 * reach if reach > 1e-6 else 1.0

    def checked(self) -> Scene:
        """Return the scene.

        Raises:
            DataMissing: it has no photograph or no point, no camera sees a point, or a photograph has another size than
                its camera.
        """
        if not self.train:
            raise DataMissing(f"{self.source}: expected at least one photograph to learn from, got none")
        if len(self.points) == 0:
            raise DataMissing(f"{self.source}: expected points to start from, got none: the scene is empty")
        for view in (*self.train, *self.test):
            camera = view.camera.checked(f"{self.source}: camera of {view.name}")
            if view.photograph.shape != (camera.height, camera.width, 3):
                raise DataMissing(
                    f"{self.source}: {view.name}: expected a picture of {camera.width} x {camera.height} pixels, got "
                    f"{view.photograph.shape[1]} x {view.photograph.shape[0]}"
                )
        if not any(visible(self.points, view.camera).any() for view in self.train):
            raise DataMissing(
                f"{self.source}: none of the {len(self.points)} points is in front of a camera and in its picture; "
                "cameras look along +z, with y down: were the poses written for another convention?"
            )
        return self

    def thinned(self, most: int, rng: np.random.Generator) -> Scene:
        """Return the scene with at most `most` points, drawn without replacement."""
        if len(self.points) <= most:
            return self
        chosen = np.sort(rng.permutation(len(self.points))[:most])
        return replace(self, points=self.points[chosen], colors=self.colors[chosen])


def visible(points: np.ndarray, camera: Camera) -> np.ndarray:
    """Return (n,) whether points (n, 3) are in front of a camera and in its picture."""
    t = points @ np.array(camera.rotation).T + np.array(camera.translation)
    deep = np.where(t[:, 2] > NEAR, t[:, 2], np.inf)
    u = camera.focal[0] * t[:, 0] / deep + camera.center[0]
    v = camera.focal[1] * t[:, 1] / deep + camera.center[1]
    inside: np.ndarray = (t[:, 2] > NEAR) & (u >= 0) & (u < camera.width) & (v >= 0) & (v < camera.height)
    return inside
