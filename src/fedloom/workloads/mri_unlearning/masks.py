"""Masks of k-space columns in fastMRI's definitions: a fully sampled centre, and some of the other columns."""

from __future__ import annotations

import math

import numpy as np

from fedloom.core.errors import ConfigError
from fedloom.core.records import Array
from fedloom.workloads.mri_unlearning.config import MaskSettings


def centre_columns(width: int, fraction: float) -> slice:
    """Return the fully sampled columns: `round(fraction * width)` of them around the middle."""
    count = round(width * fraction)
    start = (width - count + 1) // 2
    return slice(start, start + count)


def make_mask(settings: MaskSettings, width: int, rng: np.random.Generator) -> Array:
    """Draw a mask.

    Args:
        settings: kind, acceleration R and fraction of the centre.
        width: columns of k-space.
        rng: of the offset, or of the columns.

    Returns:
        Whether a column is sampled, (width,), bool. `equispaced`: every R-th column from a random offset below R, and
        the centre. `equispaced_fraction`: a larger spacing, so that with the centre one of R columns is sampled.
        `random`: each column outside the centre with the probability that makes it one of R on average.

    Raises:
        ConfigError: the mask would sample no column, or more than one of R.
    """
    centre = centre_columns(width, settings.centre_fraction)
    count, wanted = centre.stop - centre.start, width / settings.acceleration
    if not count:
        raise ConfigError(
            f"workload.mask.centre_fraction: {settings.centre_fraction:g} of {width} columns is no column, so coil "
            f"sensitivities cannot be estimated; set at least {1 / width:.3f}"
        )
    mask = np.zeros(width, bool)
    if settings.kind == "equispaced":
        mask[int(rng.integers(settings.acceleration)) :: settings.acceleration] = True
    else:
        rest = wanted - count
        if rest < 0:
            raise ConfigError(
                f"workload.mask: the centre of {count} columns is more than 1 of {settings.acceleration} of {width}; "
                "lower acceleration or centre_fraction"
            )
        if settings.kind == "random":
            mask |= rng.random(width) < rest / (width - count)
        elif rest > 0:
            mask[_spread(width, (width - count) / rest, rng)] = True
    mask[centre] = True
    return mask


def _spread(width: int, spacing: float, rng: np.random.Generator) -> Array:
    """Return columns at a spacing that need not be whole, from a random offset below it."""
    offset = int(rng.integers(max(round(spacing), 1)))
    found = np.around(np.arange(offset, width - 1, spacing)).astype(np.int64)
    return found[found < width]


def true_acceleration(mask: Array) -> float:
    """Return the columns over the sampled columns."""
    return len(mask) / max(int(mask.sum()), 1) if mask.any() else math.inf
