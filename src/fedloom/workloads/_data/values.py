"""Values of images as numbers from 0 (black) to 1 (white): one rule for arrays and pictures, recorded in words."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedloom.core.errors import DataMissing
from fedloom.core.records import Array

Range = tuple[float, float]
"""Values that are black and white."""
BYTES = "8 bits: value / 255"
"""Scaling of bytes, in words."""


def scaled(values: Array, value_range: Range | None, where: str) -> tuple[Array, str]:
    """Return image values as uint8 (255 is white) or as float32 (1 is white), and the rule that was used, in words.

    Booleans are black and white, bytes stay, 16-bit integers are divided by 65535, floats are taken as they are.

    Args:
        values: an array of images, any shape.
        value_range: values that are black and white, for every type; None takes the type's.
        where: the file and the array's name, for messages.

    Raises:
        DataMissing: integers of another type without a range, or values that are no real numbers or not finite.
    """
    kind = values.dtype
    if kind.kind not in "buif":
        raise DataMissing(f"{where}: images of type {kind}, expected bytes, integers or floats")
    if kind.kind == "f" and not np.isfinite(values).all():
        raise DataMissing(f"{where}: {int((~np.isfinite(values)).sum())} values are NaN or infinite. Replace them")
    if value_range is not None:
        low, high = value_range
        return ((values.astype(np.float64) - low) / (high - low)).astype(np.float32), f"({low:g}, {high:g}) to (0, 1)"
    if kind == np.bool_:
        return values.astype(np.uint8) * np.uint8(255), "1 bit: black and white"
    if kind == np.uint8:
        return values, BYTES
    if kind == np.uint16:
        return values.astype(np.float32) / np.float32(65535.0), "16 bits: value / 65535"
    if kind.kind == "f":
        return values.astype(np.float32), "floats: as they are"
    raise DataMissing(f"{where}: {unsaid(kind.name, values)}")


def stacked(pictures: Sequence[Array]) -> Array:
    """Stack pictures of one shape: uint8, or float32 from 0 to 1 if any of them is."""
    if all(picture.dtype == np.uint8 for picture in pictures):
        return np.stack(pictures)
    return np.stack([unit(picture) for picture in pictures])


def unit(values: Array) -> Array:
    """Return bytes as floats from 0 to 1; floats unchanged."""
    return values.astype(np.float32) / np.float32(255.0) if values.dtype == np.uint8 else values.astype(np.float32)


def unsaid(what: str, values: Array) -> str:
    """Return the message that values do not determine white, with the setting to use."""
    low, high = (float(edge) for edge in (values.min(), values.max())) if values.size else (0.0, 1.0)
    return (
        f"{what} values from {low:g} to {high:g} do not determine black and white. Set workload.data.value_range, "
        f"such as [{min(low, 0.0):g}, {high if high > min(low, 0.0) else 1.0:g}], the same for every site"
    )
