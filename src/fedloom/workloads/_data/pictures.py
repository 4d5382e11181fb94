"""Pillow pictures as arrays."""

from __future__ import annotations

import numpy as np
from PIL import Image

from fedloom.core.records import Array


def picture_array(picture: Image.Image, size: int | None, channels: int) -> Array:
    """A picture as (h, w, channels), uint8, resized to `size` x `size` pixels where that is given.

    Transparent pixels become white.
    """
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        layered = picture.convert("RGBA")
        white = Image.new("RGBA", layered.size, "white")
        picture = Image.alpha_composite(white, layered)
    picture = picture.convert("L" if channels == 1 else "RGB")
    if size is not None and picture.size != (size, size):
        picture = picture.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(picture, np.uint8).reshape(picture.height, picture.width, channels)
