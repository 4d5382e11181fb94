"""Splats projected into a camera's picture.

Every value of a splat is computed from that splat alone by element-wise operations, so that it has the same bits in
whichever set of splats it is projected.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fedloom.workloads.retinags.camera import NEAR, Camera
from fedloom.workloads.retinags.harmonics import seen_colors
from fedloom.workloads.retinags.splats import COLORS, HARMONICS, OPACITIES, POSITIONS, ROTATIONS, SCALES, Splats

ALPHA_MIN = 1 / 255
"""Opacity below which a splat is not drawn in a pixel."""
LOW_PASS = 0.3
"""Added to the variances of a projected splat, square pixels."""


@dataclass(frozen=True, slots=True)
class Projected:
    """n splats as a camera sees them."""

    centers: Tensor
    """(n, 2), pixels."""
    depths: Tensor
    """(n,), camera depth of the centres."""
    conics: Tensor
    """(n, 3), a, b and c of the exponent -(a dx^2 + 2 b dx dy + c dy^2) / 2."""
    opacities: Tensor
    """(n,), in (0, 1)."""
    colors: Tensor
    """(n, 3), at least 0."""
    extents: Tensor
    """(n, 2), half the size in pixels of the rectangle outside of which alpha is below `ALPHA_MIN`; no gradient."""
    seen: Tensor
    """(n,), whether a splat's rectangle is in the picture and its centre beyond `NEAR`."""


def project(splats: Splats, camera: Camera, degree: int = 3) -> Projected:
    """Return the splats in a camera's picture.

    Args:
        splats: n of them.
        camera: its size is in pixels.
        degree: of the last spherical harmonic used, 0 to 3.
    """
    x, y, z = _in_camera(splats[POSITIONS], camera)
    seen = z > NEAR
    z = torch.where(seen, z, torch.ones_like(z))
    xx, xy, yy = _covariance(splats, (x, y, z), camera)
    determinant = xx * yy - xy * xy
    centers = torch.stack(
        [camera.focal[0] * x / z + camera.center[0], camera.focal[1] * y / z + camera.center[1]], dim=1
    )
    opacities = torch.sigmoid(splats[OPACITIES])
    extents = _extents(xx.detach(), yy.detach(), opacities.detach())
    size = torch.tensor([camera.width, camera.height], dtype=z.dtype, device=z.device)
    inside = ((centers + extents > 0) & (centers - extents < size)).all(1)
    eye = torch.tensor(camera.position, dtype=z.dtype, device=z.device)
    return Projected(
        centers=centers,
        depths=z,
        conics=torch.stack([yy / determinant, -xy / determinant, xx / determinant], dim=1),
        opacities=opacities,
        colors=seen_colors(splats[COLORS], splats[HARMONICS], splats[POSITIONS] - eye, degree),
        extents=extents,
        seen=seen & inside & (extents > 0).all(1) & (determinant > 0),
    )


def rotation_matrices(quaternions: Tensor) -> list[list[Tensor]]:
    """Return the entries of the rotations, (n,) each, of quaternions (n, 4) of any length but zero."""
    w, x, y, z = quaternions.unbind(1)
    s = 2 / (w * w + x * x + y * y + z * z)
    return [
        [1 - s * (y * y + z * z), s * (x * y - w * z), s * (x * z + w * y)],
        [s * (x * y + w * z), 1 - s * (x * x + z * z), s * (y * z - w * x)],
        [s * (x * z - w * y), s * (y * z + w * x), 1 - s * (x * x + y * y)],
    ]


def _in_camera(positions: Tensor, camera: Camera) -> tuple[Tensor, Tensor, Tensor]:
    px, py, pz = positions.unbind(1)
    x, y, z = (
        row[0] * px + row[1] * py + row[2] * pz + shift
        for row, shift in zip(camera.rotation, camera.translation, strict=True)
    )
    return x, y, z


def _covariance(splats: Splats, at: tuple[Tensor, Tensor, Tensor], camera: Camera) -> tuple[Tensor, Tensor, Tensor]:
    """Return the variances and the covariance of the projected splats, square pixels."""
    x, y, z = at
    (fx, fy), r = camera.focal, camera.rotation
    limit_x, limit_y = 1.3 * camera.width / (2 * fx), 1.3 * camera.height / (2 * fy)
    tx, ty = (x / z).clamp(-limit_x, limit_x), (y / z).clamp(-limit_y, limit_y)
    turned, scale = rotation_matrices(splats[ROTATIONS]), torch.exp(splats[SCALES]).unbind(1)
    first, second = list[Tensor](), list[Tensor]()
    for j in range(3):
        a, b, c = (sum_of_three(r[i], [turned[0][j], turned[1][j], turned[2][j]]) * scale[j] for i in range(3))
        first.append(fx / z * (a - tx * c))
        second.append(fy / z * (b - ty * c))
    xx = first[0] * first[0] + first[1] * first[1] + first[2] * first[2] + LOW_PASS
    yy = second[0] * second[0] + second[1] * second[1] + second[2] * second[2] + LOW_PASS
    xy = first[0] * second[0] + first[1] * second[1] + first[2] * second[2]
    return xx, xy, yy


def sum_of_three(factors: tuple[float, float, float], values: list[Tensor]) -> Tensor:
    """Return the sum of three products, element by element."""
    return factors[0] * values[0] + factors[1] * values[1] + factors[2] * values[2]


def _extents(xx: Tensor, yy: Tensor, opacities: Tensor) -> Tensor:
    """Return the half sizes of {alpha >= ALPHA_MIN}, a little too large for rounding; 0 where that set is empty."""
    reach = 2 * torch.log((opacities / ALPHA_MIN).clamp_min(1.0)) * (1 + 1e-4) + 1e-4
    reach = torch.where(opacities * (1 + 1e-6) >= ALPHA_MIN, reach, torch.zeros_like(reach))
    return torch.sqrt(torch.stack([reach * xx, reach * yy], dim=1))


def field_of_view(camera: Camera) -> tuple[float, float]:
    """Return the horizontal and vertical field of view, radians."""
    return 2 * math.atan(camera.width / (2 * camera.focal[0])), 2 * math.atan(camera.height / (2 * camera.focal[1]))
