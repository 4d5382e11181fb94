"""Random scenes of splats, and a naive rasteriser to compare with: one pixel, one splat at a time, in NumPy."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from fedloom.workloads.retinags.camera import Camera, looking
from fedloom.workloads.retinags.harmonics import basis
from fedloom.workloads.retinags.splats import tensors


def random_splats(n: int, seed: int, scale: float = 0.15) -> dict[str, np.ndarray]:
    """Return n random splats in a cube of side 2, float64."""
    rng = np.random.default_rng(seed)
    return {
        "positions": rng.uniform(-1, 1, (n, 3)),
        "colors": rng.standard_normal((n, 3)),
        "harmonics": 0.2 * rng.standard_normal((n, 15, 3)),
        "opacities": 1.5 * rng.standard_normal(n),
        "scales": np.log(scale) + 0.5 * rng.standard_normal((n, 3)),
        "rotations": rng.standard_normal((n, 4)),
    }


def as_tensors(splats: dict[str, np.ndarray], dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    return {name: value.requires_grad_() for name, value in tensors(splats, torch.device("cpu"), dtype).items()}


def random_camera(seed: int, size: tuple[int, int] = (32, 24), distance: float = 3.0) -> Camera:
    """Return a camera at a random place at a distance from the origin, looking near it."""
    rng = np.random.default_rng(seed)
    eye = rng.standard_normal(3)
    return looking(distance * eye / np.linalg.norm(eye), 0.3 * rng.standard_normal(3), 0.9, size)


def naive_picture(splats: dict[str, np.ndarray], camera: Camera, degree: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Return the colour (height, width, 3) and the alpha (height, width) of splats before black."""
    turn, shift, eye = np.array(camera.rotation), np.array(camera.translation), np.array(camera.position)
    drawn = []
    for i, position in enumerate(splats["positions"]):
        x, y, z = turn @ position + shift
        if z <= 0.2:
            continue
        w, qx, qy, qz = splats["rotations"][i] / np.linalg.norm(splats["rotations"][i])
        r = np.array(
            [
                [1 - 2 * (qy**2 + qz**2), 2 * (qx * qy - w * qz), 2 * (qx * qz + w * qy)],
                [2 * (qx * qy + w * qz), 1 - 2 * (qx**2 + qz**2), 2 * (qy * qz - w * qx)],
                [2 * (qx * qz - w * qy), 2 * (qy * qz + w * qx), 1 - 2 * (qx**2 + qy**2)],
            ]
        )
        sigma = r @ np.diag(np.exp(2 * splats["scales"][i])) @ r.T
        limits = [1.3 * size / (2 * f) for size, f in zip((camera.width, camera.height), camera.focal, strict=True)]
        tx, ty = (float(np.clip(v / z, -limit, limit)) for v, limit in zip((x, y), limits, strict=True))
        jacobian = np.array([[camera.focal[0], 0, -camera.focal[0] * tx], [0, camera.focal[1], -camera.focal[1] * ty]])
        flat = jacobian / z @ turn @ sigma @ turn.T @ jacobian.T / z + 0.3 * np.eye(2)
        center = np.array([camera.focal[0] * x / z + camera.center[0], camera.focal[1] * y / z + camera.center[1]])
        way = torch.tensor((position - eye) / np.linalg.norm(position - eye))[None]
        rest = sum(float(b) * splats["harmonics"][i][j] for j, b in enumerate(basis(way, degree)))
        color = np.maximum(0.28209479177387814 * splats["colors"][i] + rest + 0.5, 0)
        drawn.append((z, center, np.linalg.inv(flat), 1 / (1 + math.exp(-splats["opacities"][i])), color))
    drawn.sort(key=lambda each: float(each[0]))
    picture, alphas = np.zeros((camera.height, camera.width, 3)), np.zeros((camera.height, camera.width))
    for row in range(camera.height):
        for column in range(camera.width):
            through = 1.0
            for _, center, inverse, opacity, color in drawn:
                d = np.array([column + 0.5, row + 0.5]) - center
                alpha = min(0.99, opacity * math.exp(-0.5 * float(d @ inverse @ d)))
                if alpha >= 1 / 255:
                    picture[row, column] += through * alpha * color
                    through *= 1 - alpha
            alphas[row, column] = 1 - through
    return picture, alphas
