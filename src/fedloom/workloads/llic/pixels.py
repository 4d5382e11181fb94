"""Images as arrays of pixels: reading files of any format that Pillow opens, and writing them. Imports no torch."""

from __future__ import annotations

import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fedloom.core.errors import DataMissing, UsageError
from fedloom.core.extras import needed_by
from fedloom.core.records import Array
from fedloom.workloads.llic.container import MOST_PIXELS, StreamInvalid

if TYPE_CHECKING:
    from PIL import Image

_LUMA = np.array([0.299, 0.587, 0.114])


@dataclass(frozen=True, slots=True)
class Pixels:
    """An 8-bit image."""

    rgb: Array
    """(H, W, 3), uint8; grey images have three equal channels."""
    alpha: Array | None = None
    """(H, W), uint8; None without an alpha channel."""
    grey: bool = False

    @property
    def size(self) -> int:
        """Return H W."""
        return int(self.rgb.shape[0] * self.rgb.shape[1])


def read_pixels(path: Path) -> Pixels:
    """Read an image file, turned as its EXIF data says.

    Raises:
        DataMissing: it is missing or cannot be read.
        UsageError: it has 16 bits per channel or real numbers, or too many pixels.
    """
    with needed_by("reading images"):
        from PIL import Image, ImageOps
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's about large images; the limit below is lower
            with Image.open(path) as opened:
                _check(opened, path)
                image = ImageOps.exif_transpose(opened)
                image.load()
                return _pixels(image)
    except FileNotFoundError as exc:
        raise DataMissing(f"{path}: no such image") from exc
    except UsageError:
        raise
    except Exception as exc:  # readers of formats raise whatever a damaged file leads them to
        raise DataMissing(f"{path}: cannot be read as an image: {exc}") from exc


def _check(image: Image.Image, path: Path) -> None:
    if image.mode[:1] in ("I", "F") or _has_16_bits(image):
        raise UsageError(
            f"{path}: expected 8 bits per channel, got 16 or more (Pillow's mode {image.mode}). Convert it first; the "
            "codec's model has 8-bit colours"
        )
    width, height = image.size
    if not 0 < width * height <= MOST_PIXELS:
        raise UsageError(f"{path}: expected 1 to {MOST_PIXELS:,} pixels, got {width} x {height}")


def _has_16_bits(image: Image.Image) -> bool:
    """Return whether a file has 16 bits per channel that Pillow would shorten to 8 without a word."""
    tags = vars(image).get("tag_v2")  # TIFF
    bits = () if tags is None else tags.get(258, ())
    if any(each > 8 for each in (bits if isinstance(bits, tuple) else (bits,))):
        return True
    return any(";16" in str(tile[3]) for tile in vars(image).get("tile") or ())  # PNG, TIFF, PPM: the raw mode


def _pixels(image: Image.Image) -> Pixels:
    transparent = "A" in image.getbands() or "transparency" in image.info
    grey = image.mode in ("1", "L", "LA", "La")
    alpha = np.asarray(image.convert("RGBA").getchannel("A")).copy() if transparent else None
    return Pixels(np.asarray(image.convert("RGB")).copy(), alpha, grey)


def write_pixels(pixels: Pixels, path: Path) -> None:
    """Write an image; the format follows from the name (`.png` is without loss).

    Raises:
        UsageError: the format is unknown, cannot hold the image, or the file cannot be written.
    """
    with needed_by("writing images"):
        from PIL import Image
    image = Image.fromarray(pixels.rgb)
    if pixels.grey:
        luma = np.rint(pixels.rgb.astype(np.float64) @ _LUMA).astype(np.uint8)
        image = Image.fromarray(luma)
    if pixels.alpha is not None:
        image.putalpha(Image.fromarray(pixels.alpha))
    try:
        image.save(path)
    except (OSError, ValueError, KeyError) as exc:
        path.unlink(missing_ok=True)
        raise UsageError(f"{path}: cannot be written: {exc}. Formats without loss: .png, .webp, .tif") from exc


def pack_alpha(alpha: Array) -> bytes:
    """Return an alpha channel (H, W) without loss: differences along rows, deflated."""
    return zlib.compress(np.diff(alpha, axis=1, prepend=np.uint8(0)).astype(np.uint8).tobytes(), 9)


def unpack_alpha(data: bytes, height: int, width: int) -> Array:
    """Return the alpha channel that `pack_alpha` has packed, (height, width), uint8.

    Raises:
        StreamInvalid: the data is damaged.
    """
    reader = zlib.decompressobj()
    try:
        raw = reader.decompress(data, height * width + 1)
    except zlib.error as exc:
        raise StreamInvalid(f"the alpha channel is damaged: {exc}") from exc
    if len(raw) != height * width or not reader.eof or reader.unused_data:
        raise StreamInvalid(f"the alpha channel is damaged: expected {height * width} values, got {len(raw)}")
    return np.cumsum(np.frombuffer(raw, np.uint8).reshape(height, width), axis=1, dtype=np.uint8)
