"""Movements. Images are (n, c, h, w); what moves in from outside is 0. Lengths are shares of the image's side."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter

from fedloom.core.records import Array
from fedloom.strategies.mano.workload.corruptions.draws import Draws
from fedloom.strategies.mano.workload.corruptions.sampling import grid, sampled

_SMOOTH = 1 / 9
"""Width of the filter that smooths elastic displacements, as a share of the side."""


def zoom(images: Array, strength: float, draws: Draws) -> Array:
    """Magnified by 1 + strength about the middle."""
    down, right = grid(images)
    return sampled(images, down / (1 + strength), right / (1 + strength))


def shrink(images: Array, strength: float, draws: Draws) -> Array:
    """Made smaller by the factor 1 - strength."""
    down, right = grid(images)
    return sampled(images, down / (1 - strength), right / (1 - strength))


def rotate(images: Array, strength: float, draws: Draws) -> Array:
    """Turned by `strength` degrees, left or right by the image's own draw."""
    down, right = grid(images)
    angle = np.deg2rad(strength) * draws.signs()[:, None, None]
    return sampled(images, np.cos(angle) * down + np.sin(angle) * right, np.cos(angle) * right - np.sin(angle) * down)


def translate(images: Array, strength: float, draws: Draws) -> Array:
    """Moved by `strength` sides in a direction of the image's own."""
    down, right = grid(images)
    angle = 2 * np.pi * draws.uniform()[:, None, None]
    length = strength * images.shape[2]
    return sampled(images, down + length * np.sin(angle), right + length * np.cos(angle))


def shear(images: Array, strength: float, draws: Draws) -> Array:
    """Rows moved sideways by `strength` times their height, left or right by the image's own draw."""
    down, right = grid(images)
    return sampled(images, down, right + strength * draws.signs()[:, None, None] * down)


def elastic(images: Array, strength: float, draws: Draws) -> Array:
    """Move every pixel by a smooth random field whose standard deviation is `strength` sides."""
    down, right = grid(images)
    side = images.shape[2]
    field = gaussian_filter(draws.normal(2, *images.shape[2:]), (0, 0, side * _SMOOTH, side * _SMOOTH))
    field = field / field.std(axis=(2, 3), keepdims=True) * strength * side
    return sampled(images, down + field[:, 0], right + field[:, 1])
