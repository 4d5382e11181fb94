"""A scene made in code: a known set of splats, photographed from an orbit."""

from __future__ import annotations

import numpy as np
import torch

from fedloom.workloads.retinags.camera import Camera, looking
from fedloom.workloads.retinags.projection import project
from fedloom.workloads.retinags.raster import rasterize
from fedloom.workloads.retinags.scene import Scene, View
from fedloom.workloads.retinags.splats import HARMONICS, OPACITIES, ROTATIONS, SCALES, from_points, tensors

EXTENT = 1.0
"""Half the side of the cube that the surfaces lie in, the scene's units."""


def make_scene(views: int, held_out: int, size: tuple[int, int], splats: int, rng: np.random.Generator) -> Scene:
    """Return photographs of a ground, a ball and two walls, all of coloured splats.

    Args:
        views: photographs to learn from, on an orbit.
        held_out: photographs between them.
        size: width and height of a photograph, pixels.
        splats: that the true scene consists of. Their centres, moved a little, are the points to start from.
        rng: of the scene; the same generator gives the same scene.
    """
    points, colors = surfaces(splats, rng)
    truth = from_points(points, colors, opacity=0.9)
    truth[ROTATIONS] = rng.standard_normal((splats, 4)).astype(np.float32)
    truth[SCALES] += rng.uniform(-0.5, 0.3, (splats, 3)).astype(np.float32)
    truth[OPACITIES] += rng.uniform(-1, 1, splats).astype(np.float32)
    truth[HARMONICS][:, :3] = 0.1 * rng.standard_normal((splats, 3, 3)).astype(np.float32)
    orbit = [_camera(2 * np.pi * i / views, i, size) for i in range(views)]
    between = [_camera(2 * np.pi * (i + 0.5) / held_out, i + 1, size) for i in range(held_out)]
    start = points + 0.02 * EXTENT * rng.standard_normal(points.shape)
    return Scene(
        train=tuple(_photograph(truth, camera, f"view-{i:03d}") for i, camera in enumerate(orbit)),
        test=tuple(_photograph(truth, camera, f"held-out-{i:03d}") for i, camera in enumerate(between)),
        points=start.astype(np.float32),
        colors=np.clip(0.5 * colors + 0.25, 0, 1).astype(np.float32),
        source=f"synthetic scene of {splats} splats",
    ).checked()


def surfaces(count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return points (count, 3) on the surfaces and their colours (count, 3) in [0, 1]; y points down."""
    which, (a, b) = rng.integers(0, 4, count), rng.uniform(-1, 1, (2, count))
    angle, height = np.pi * a, b
    round_ = np.sqrt(1 - height**2)
    ball = np.stack([0.45 * round_ * np.cos(angle), 0.15 - 0.45 * height, 0.45 * round_ * np.sin(angle)], axis=1)
    shapes = [
        np.stack([a, np.full(count, 0.6), b], axis=1),
        ball,
        np.stack([np.full(count, -0.9), 0.1 + 0.5 * a, 0.8 * b], axis=1),
        np.stack([0.8 * a, 0.1 + 0.5 * b, np.full(count, 0.9)], axis=1),
    ]
    points = EXTENT * np.choose(which[:, None], shapes)
    checks = (np.floor(3 * a) + np.floor(3 * b)) % 2
    base = np.array([[0.8, 0.75, 0.6], [0.85, 0.25, 0.2], [0.2, 0.45, 0.8], [0.25, 0.7, 0.35]])[which]
    return points, np.clip(base * (0.55 + 0.45 * checks[:, None]), 0, 1)


def _camera(angle: float, number: int, size: tuple[int, int]) -> Camera:
    eye = EXTENT * np.array([2.6 * np.sin(angle), -0.7 - 0.25 * (number % 2), -2.6 * np.cos(angle)])
    return looking(eye, np.array([0.0, 0.1, 0.0]), 0.85, size)


def _photograph(truth: dict[str, np.ndarray], camera: Camera, name: str) -> View:
    with torch.inference_mode(False), torch.no_grad():
        splats = tensors(truth, torch.device("cpu"), torch.float64)
        picture = rasterize(project(splats, camera), camera, torch.arange(len(truth[OPACITIES]))).color
    eight_bits = np.round(picture.clamp(0, 1).numpy() * 255)
    return View(name, camera, (eight_bits / 255).astype(np.float32))
