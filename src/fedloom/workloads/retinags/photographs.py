"""Photographs read from files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from fedloom.core.errors import DataMissing


def read_photograph(path: Path, downscale: int = 1) -> np.ndarray:
    """Return a picture (height, width, 3), float32 in [0, 1], reduced by the mean of `downscale` x `downscale` pixels.

    A picture with alpha is laid on black.

    Raises:
        DataMissing: the file is absent, no picture, of more than 8 bits, or smaller than `downscale` pixels.
    """
    try:
        with Image.open(path) as opened:
            if opened.mode.startswith(("I", "F")):
                raise DataMissing(f"{path}: expected a picture of 8 bits a channel, got mode {opened.mode!r}")
            rgba = np.asarray(opened.convert("RGBA"), np.float32) / 255
    except (OSError, UnidentifiedImageError, SyntaxError) as exc:
        raise DataMissing(f"{path}: expected a picture: {exc}") from exc
    return reduced(rgba[..., :3] * rgba[..., 3:], downscale, str(path))


def reduced(picture: np.ndarray, factor: int, where: str) -> np.ndarray:
    """Return a picture made smaller by a whole factor; rows and columns beyond a multiple of it are cut off.

    Raises:
        DataMissing: it is smaller than the factor.
    """
    height, width = picture.shape[0] // factor, picture.shape[1] // factor
    if min(height, width) < 1:
        raise DataMissing(
            f"{where}: expected at least {factor} x {factor} pixels to reduce by {factor}, got "
            f"{picture.shape[1]} x {picture.shape[0]}"
        )
    cut = picture[: height * factor, : width * factor]
    smaller: np.ndarray = cut.reshape(height, factor, width, factor, 3).mean((1, 3), dtype=np.float32)
    return smaller
