"""The image formats that learned compression is compared with: real bytes of Pillow's encoders. Imports no torch."""

from __future__ import annotations

import functools
import importlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fedloom.core.extras import needed_by
from fedloom.core.records import Array
from fedloom.workloads.llic.config import Rival

TITLES: Mapping[Rival, str] = {
    "jpeg": "JPEG (4:2:0)",
    "jpeg444": "JPEG (4:4:4)",
    "webp": "WebP",
    "avif": "AVIF",
    "jpeg2000": "JPEG 2000",
    "jxl": "JPEG XL",
}
"""Names for people."""
_QUALITIES: Mapping[Rival, Sequence[float]] = {
    "jpeg": (1, 5, 10, 15, 20, 30, 40, 50, 60, 70, 80, 90, 95),
    "jpeg444": (1, 5, 10, 15, 20, 30, 40, 50, 60, 70, 80, 90, 95),
    "webp": (0, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95),
    "avif": (5, 15, 25, 35, 45, 55, 65, 75, 85, 92),
    "jpeg2000": (800, 400, 200, 120, 80, 50, 30, 20, 12, 8, 5),  # ratios of compression
    "jxl": (5, 15, 25, 35, 45, 55, 65, 75, 85, 92),
}
_FORMATS: Mapping[Rival, str] = {
    "jpeg": "JPEG", "jpeg444": "JPEG", "webp": "WEBP", "avif": "AVIF", "jpeg2000": "JPEG2000", "jxl": "JXL"
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Point:
    """One image at one quality."""

    bits: int
    """Of the whole file."""
    decoded: Array
    """(H, W, 3), uint8."""

    def mse(self, rgb: Array) -> float:
        """Return the mean squared error of 8-bit values."""
        return float(np.square(self.decoded.astype(np.float64) - rgb).mean())


def points(rival: Rival, rgb: Array) -> list[Point]:
    """Return an image at a format's qualities, from the lowest.

    Args:
        rival: the format.
        rgb: (H, W, 3), uint8.

    Raises:
        PackageMissing: Pillow is not installed, or the plug-in for JPEG XL.
    """
    return [point(rival, rgb, quality) for quality in _QUALITIES[rival]]


def point(rival: Rival, rgb: Array, quality: float) -> Point:
    """Return an image at one quality (a ratio of compression for JPEG 2000)."""
    with needed_by(f"comparison with {TITLES[rival]}"):
        from PIL import Image

        if rival == "jxl":
            importlib.import_module("pillow_jxl")
    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, _FORMATS[rival], **_options(rival, quality))
    with Image.open(io.BytesIO(buffer.getvalue())) as opened:
        decoded = np.asarray(opened.convert("RGB"))
    return Point(8 * len(buffer.getvalue()), decoded)


def _options(rival: Rival, quality: float) -> dict[str, object]:
    match rival:
        case "jpeg" | "jpeg444":
            return {"quality": int(quality), "optimize": True, "subsampling": 2 if rival == "jpeg" else 0}
        case "webp":
            return {"quality": int(quality), "method": 6}
        case "avif":
            return {"quality": int(quality), "speed": 6, "max_threads": 1}
        case "jpeg2000":
            return {"quality_mode": "rates", "quality_layers": [quality], "irreversible": True}
        case _:
            return {"quality": int(quality), "effort": 5}


@functools.cache
def missing(rival: Rival) -> str:
    """Return why a format is not available here; empty if it is."""
    try:
        point(rival, np.zeros((16, 16, 3), np.uint8), _QUALITIES[rival][-1])
    except Exception as exc:  # encoders raise whatever they like where they were not built in
        return f"{type(exc).__name__}: {exc}"
    return ""
