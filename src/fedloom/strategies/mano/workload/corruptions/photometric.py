"""Light, and obstructions. Images are (n, c, h, w), pixels from 0 to 1."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter

from fedloom.core.records import Array
from fedloom.strategies.mano.workload.corruptions.draws import Draws

_BANK = 1 / 6
"""Width of the filter that makes fog of noise, as a fraction of the side."""


def brightness(images: Array, strength: float, draws: Draws) -> Array:
    """Adds `strength` to every pixel."""
    return images + strength


def contrast(images: Array, strength: float, draws: Draws) -> Array:
    """Scale the distance to the image's mean by 1 - strength."""
    mean = images.mean(axis=(1, 2, 3), keepdims=True)
    faded: Array = mean + (1 - strength) * (images - mean)
    return faded


def gamma(images: Array, strength: float, draws: Draws) -> Array:
    """Raise the pixel to the power 1 + strength."""
    darker: Array = images ** (1 + strength)
    return darker


def fog(images: Array, strength: float, draws: Draws) -> Array:
    """Replace a fraction `strength` of every pixel by smooth random fog between 0 and 1."""
    side = images.shape[2]
    bank = gaussian_filter(draws.normal(1, *images.shape[2:]), (0, 0, side * _BANK, side * _BANK))
    low, high = (extreme(bank, axis=(2, 3), keepdims=True) for extreme in (np.min, np.max))
    foggy: Array = (1 - strength) * images + strength * (bank - low) / (high - low)
    return foggy


def inversion(images: Array, strength: float, draws: Draws) -> Array:
    """Move a fraction `strength` of the way to 1 - x."""
    return (1 - strength) * images + strength * (1 - images)


def pixelate(images: Array, strength: float, draws: Draws) -> Array:
    """Means over blocks whose side is `strength` sides."""
    blocks = max(1, round(1 / strength))
    for axis in (2, 3):
        of = np.arange(images.shape[axis]) * blocks // images.shape[axis]
        starts = np.flatnonzero(np.diff(of, prepend=-1))
        sizes = np.diff(np.append(starts, len(of)))
        shape = [1] * images.ndim
        shape[axis] = -1
        means = np.add.reduceat(images, starts, axis=axis) / sizes.reshape(shape)
        images = np.repeat(means, sizes, axis=axis)
    return images


def occlusion(images: Array, strength: float, draws: Draws) -> Array:
    """Make a square of `strength` sides grey, at a position drawn for the image."""
    height, width = images.shape[2:]
    side = max(1, round(strength * height))
    place = draws.uniform(2)
    top, left = (np.floor(place[:, axis] * (size - side + 1)) for axis, size in enumerate((height, width)))
    rows, columns = np.arange(height)[None, :, None], np.arange(width)[None, None, :]
    hidden = (rows >= top[:, None, None]) & (rows < top[:, None, None] + side)
    hidden = hidden & (columns >= left[:, None, None]) & (columns < left[:, None, None] + side)
    return np.where(hidden[:, None], 0.5, images)
