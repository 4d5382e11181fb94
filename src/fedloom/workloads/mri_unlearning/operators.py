"""The forward model of accelerated MRI: centred Fourier transforms, coils, sampled columns, and their adjoints.

Arrays are complex; the last two dimensions are height and width. A Cartesian mask samples columns of k-space.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_PLANE = (-2, -1)


def fft2c(image: Tensor) -> Tensor:
    """Return the centred orthonormal 2-D Fourier transform, (…, h, w) complex."""
    shifted = torch.fft.ifftshift(image, dim=_PLANE)
    found: Tensor = torch.fft.fftshift(torch.fft.fftn(shifted, dim=_PLANE, norm="ortho"), dim=_PLANE)
    return found


def ifft2c(kspace: Tensor) -> Tensor:
    """Return the inverse of `fft2c`, which is its adjoint too."""
    shifted = torch.fft.ifftshift(kspace, dim=_PLANE)
    found: Tensor = torch.fft.fftshift(torch.fft.ifftn(shifted, dim=_PLANE, norm="ortho"), dim=_PLANE)
    return found


def magnitude(values: Tensor) -> Tensor:
    """Return |z| as a real tensor."""
    return torch.view_as_real(values).square().sum(-1).sqrt()


def rss(images: Tensor, dim: int = 1) -> Tensor:
    """Return the root of the sum of squared magnitudes over coils, real, without the coils' dimension."""
    return torch.view_as_real(images).square().sum(-1).sum(dim).sqrt()


def expand(image: Tensor, maps: Tensor) -> Tensor:
    """Return each coil's view S_c x of an image, (b, c, h, w), of an image (b, h, w) and sensitivities (b, c, h, w)."""
    return image.unsqueeze(1) * maps


def combine(images: Tensor, maps: Tensor) -> Tensor:
    """Return sum_c conj(S_c) x_c, (b, h, w): the adjoint of `expand`."""
    return (maps.conj() * images).sum(1)


def forward(image: Tensor, maps: Tensor, mask: Tensor) -> Tensor:
    """Return the measured k-space A x = M F S x, (b, c, h, w); the mask broadcasts, (…, 1, w), bool."""
    return fft2c(expand(image, maps)) * mask


def adjoint(kspace: Tensor, maps: Tensor, mask: Tensor) -> Tensor:
    """Return A^H k = sum_c conj(S_c) F^-1 M k_c, (b, h, w)."""
    return combine(ifft2c(kspace * mask), maps)


def measured_part(images: Tensor, maps: Tensor, mask: Tensor, steps: int = 12) -> Tensor:
    """Return A^+ A x, the part of images that the scanner measures, (b, h, w) complex.

    With one coil of constant sensitivity it is F^-1 M F x. In general it is the solution of least norm of A z = A x, by
    conjugate gradients on A^H A from 0.

    Args:
        images: x, (b, h, w), real or complex.
        maps: sensitivities, (b, c, h, w).
        mask: sampled columns, broadcastable to (b, c, h, w), bool.
        steps: iterations of conjugate gradients.
    """

    def normal(x: Tensor) -> Tensor:
        return adjoint(forward(x, maps, mask), maps, mask)

    return _conjugate_gradients(normal, normal(images.to(maps.dtype)), steps)


def _conjugate_gradients(normal: Callable[[Tensor], Tensor], wanted: Tensor, steps: int) -> Tensor:
    """Return z of `normal(z) = wanted`, each image of a batch for itself."""
    solution, residual = torch.zeros_like(wanted), wanted
    direction, length = residual, _energy(residual)
    for _ in range(steps):
        moved = normal(direction)
        across = (direction.conj() * moved).real.sum(_PLANE, keepdim=True)
        step = torch.where(across > 0, length / across.clamp_min(1e-30), torch.zeros_like(length))
        solution, residual = solution + step * direction, residual - step * moved
        after = _energy(residual)
        direction = residual + torch.where(length > 0, after / length.clamp_min(1e-30), torch.zeros_like(length)) * (
            direction
        )
        length = after
    return solution


def _energy(values: Tensor) -> Tensor:
    return values.abs().square().sum(_PLANE, keepdim=True)
