"""Images at another size and with other channels, in NumPy."""

from __future__ import annotations

import numpy as np

from fedloom.core.errors import DataMissing
from fedloom.core.records import Array

LUMA = np.array([0.299, 0.587, 0.114], np.float32)
"""Weights of red, green and blue in a grey value: ITU-R BT.601."""


def resized(images: Array, size: int) -> Array:
    """Return images at `size` x `size` pixels, bilinear; if they shrink, each pixel is a mean of all that it covers.

    Args:
        images: (n, c, h, w), float32.
        size: side; pixels.

    Returns:
        (n, c, size, size), float32.
    """
    rows, columns = (_weights(side, size) for side in images.shape[2:])
    return np.ascontiguousarray(rows @ images @ columns.T)


def with_channels(images: Array, channels: int) -> Array:
    """Return images (n, c, h, w), float32, with 1 channel (their brightness) or 3 (grey repeated).

    Raises:
        DataMissing: they have neither one channel nor three.
    """
    found = images.shape[1]
    if found == channels:
        return images
    if found == 1:
        return np.repeat(images, channels, axis=1)
    if found == 3 and channels == 1:
        return np.ascontiguousarray(np.tensordot(images, LUMA, axes=([1], [0]))[:, None])
    raise DataMissing(f"workload.channels: images with {found} channels cannot become images with {channels}")


def _weights(before: int, after: int) -> Array:
    """Return the weight of each of `before` pixels in each of `after`: (after, before), rows sum to 1, float32."""
    scale = before / after
    centres = (np.arange(after) + 0.5) * scale - 0.5
    apart = np.abs(np.clip(centres, 0, before - 1)[:, None] - np.arange(before)) / max(scale, 1.0)
    weights = np.maximum(1.0 - apart, 0.0)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), np.float32)
