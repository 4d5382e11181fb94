"""Noise. Images are (n, c, h, w), pixels from 0 to 1; strengths are in units of a pixel's range by default."""

from __future__ import annotations

import numpy as np

from fedloom.core.records import Array
from fedloom.strategies.mano.workload.corruptions.draws import Draws


def gaussian_noise(images: Array, strength: float, draws: Draws) -> Array:
    """Adds N(0, strength^2)."""
    return images + strength * draws.normal(*images.shape[1:])


def speckle_noise(images: Array, strength: float, draws: Draws) -> Array:
    """Adds x N(0, strength^2)."""
    return images + images * strength * draws.normal(*images.shape[1:])


def shot_noise(images: Array, strength: float, draws: Draws) -> Array:
    """Counts photons: Poisson(x / strength) strength."""
    counts = [rng.poisson(image / strength) for rng, image in zip(draws.generators(), images, strict=True)]
    return np.stack(counts) * strength


def impulse_noise(images: Array, strength: float, draws: Draws) -> Array:
    """Set a fraction `strength` of the pixels to 0 or 1, in all channels."""
    chance = draws.uniform(1, *images.shape[2:])
    return np.where(chance < strength / 2, 0.0, np.where(chance < strength, 1.0, images))
