"""Blurs. Images are (n, c, h, w); lengths are shares of the image's side."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import convolve, gaussian_filter

from fedloom.core.records import Array
from fedloom.strategies.mano.workload.corruptions.draws import Draws
from fedloom.strategies.mano.workload.corruptions.sampling import grid, sampled

_STEPS = 7
"""Number of positions along a movement that are averaged."""
_FINE = 5
"""Points along a pixel's side by which a disk's cover of it is measured."""


def gaussian_blur(images: Array, strength: float, draws: Draws) -> Array:
    """Gaussian filter with standard deviation `strength` sides."""
    sigma = strength * images.shape[2]
    blurred: Array = gaussian_filter(images, (0, 0, sigma, sigma), mode="nearest")
    return blurred


def defocus_blur(images: Array, strength: float, draws: Draws) -> Array:
    """Mean over a disk of radius `strength` sides."""
    blurred: Array = convolve(images, _disk(strength * images.shape[2])[None, None], mode="nearest")
    return blurred


def motion_blur(images: Array, strength: float, draws: Draws) -> Array:
    """Mean over a movement `strength` sides long, in a direction of the image's own."""
    down, right = grid(images)
    angle = np.pi * draws.uniform()[:, None, None]
    places = np.linspace(-0.5, 0.5, _STEPS) * strength * images.shape[2]
    moved = (sampled(images, down + place * np.sin(angle), right + place * np.cos(angle)) for place in places)
    return sum(moved, np.zeros_like(images)) / _STEPS


def _disk(radius: float) -> Array:
    """Return each pixel's cover by a disk, adding up to 1; (k, k), k odd."""
    half = max(1, int(np.ceil(radius)))
    fine = (np.arange((2 * half + 1) * _FINE) + 0.5) / _FINE - half - 0.5
    inside = (fine[:, None] ** 2 + fine[None, :] ** 2 <= radius**2).astype(np.float64)
    side = 2 * half + 1
    cover = inside.reshape(side, _FINE, side, _FINE).sum(axis=(1, 3))
    disk: Array = cover / cover.sum()
    return disk
