"""Reading images between their pixels."""

from __future__ import annotations

import numpy as np

from fedloom.core.records import Array


def grid(images: Array) -> tuple[Array, Array]:
    """Row and column of each pixel from the image's middle, (1, h, 1) and (1, 1, w), float64; pixels."""
    height, width = images.shape[2:]
    down = np.arange(height, dtype=np.float64) - (height - 1) / 2
    right = np.arange(width, dtype=np.float64) - (width - 1) / 2
    return down[None, :, None], right[None, None, :]


def sampled(images: Array, down: Array, right: Array) -> Array:
    """Images read at places given from their middle, bilinearly, 0 outside.

    Args:
        images: (n, c, h, w).
        down: rows to read for each pixel, broadcast to (n, h, w); pixels from the middle.
        right: columns, likewise.
    """
    count, _, height, width = images.shape
    rows = np.broadcast_to(down, (count, height, width)) + (height - 1) / 2
    columns = np.broadcast_to(right, (count, height, width)) + (width - 1) / 2
    top, left = np.floor(rows).astype(np.int64), np.floor(columns).astype(np.int64)
    below, beside = (rows - top)[:, None], (columns - left)[:, None]
    between: Array = (
        _at(images, top, left) * (1 - below) * (1 - beside)
        + _at(images, top, left + 1) * (1 - below) * beside
        + _at(images, top + 1, left) * below * (1 - beside)
        + _at(images, top + 1, left + 1) * below * beside
    )
    return between


def _at(images: Array, rows: Array, columns: Array) -> Array:
    """Pixels at whole places, 0 outside; (n, c, h, w)."""
    count, _, height, width = images.shape
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    each = np.arange(count)[:, None, None]
    read = images[each, :, rows.clip(0, height - 1), columns.clip(0, width - 1)]
    found: Array = np.moveaxis(read * inside[..., None], 3, 1)
    return found
