"""Colours of splats from spherical harmonics up to degree 3."""

from __future__ import annotations

import torch
from torch import Tensor

from fedloom.workloads.retinags.splats import SH_0

_SH_1 = 0.4886025119029199
_SH_2 = (1.0925484305920792, -1.0925484305920792, 0.31539156525252005, -1.0925484305920792, 0.5462742152960396)
_SH_3 = (
    -0.5900435899266435,
    2.890611442640554,
    -0.4570457994644658,
    0.3731763325901154,
    -0.4570457994644658,
    1.445305721320277,
    -0.5900435899266435,
)


def basis(direction: Tensor, degree: int) -> list[Tensor]:
    """Return the harmonics of degree 1 to `degree`, (n,) each, in the order of 3DGS files.

    Args:
        direction: (n, 3), unit vectors.
        degree: 0 to 3.
    """
    x, y, z = direction.unbind(1)
    found = list[Tensor]()
    if degree > 0:
        found += [-_SH_1 * y, _SH_1 * z, -_SH_1 * x]
    xx, yy, zz = x * x, y * y, z * z
    if degree > 1:
        a, b, c, d, e = _SH_2
        found += [a * x * y, b * y * z, c * (2 * zz - xx - yy), d * x * z, e * (xx - yy)]
    if degree > 2:
        a, b, c, d, e, f, g = _SH_3
        found += [
            a * y * (3 * xx - yy),
            b * x * y * z,
            c * y * (4 * zz - xx - yy),
            d * z * (2 * zz - 3 * xx - 3 * yy),
            e * x * (4 * zz - xx - yy),
            f * z * (xx - yy),
            g * x * (xx - 3 * yy),
        ]
    return found


def seen_colors(constant: Tensor, rest: Tensor, offset: Tensor, degree: int) -> Tensor:
    """Return the colours that a camera sees, (n, 3), at least 0.

    Args:
        constant: (n, 3), coefficients of the constant harmonic.
        rest: (n, 15, 3), the others'.
        offset: (n, 3), from the camera's centre to the splats.
        degree: 0 to 3, of the last harmonic used.
    """
    color = SH_0 * constant + 0.5
    if degree > 0:
        x, y, z = offset.unbind(1)
        length = torch.sqrt(x * x + y * y + z * z).clamp_min(1e-12)
        for i, value in enumerate(basis(offset / length[:, None], degree)):
            color = color + value[:, None] * rest[:, i]
    return color.clamp_min(0.0)
