"""Pictures as arrays: every mode and depth that Pillow reads, scaled by one rule, or rejected by name.

A picture of at most 8 bits stays uint8, whose 255 is white. A deeper one becomes float32, black at 0 and white at 1.
White is the largest value of the file's depth: 65535 of 16 bits, 4095 of a TIFF of 12 bits. Integers of 32 bits and
floats do not say what white is: floats from 0 to 1 are taken as they are, anything else needs a `value_range`.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, ImageFile, UnidentifiedImageError

from fedloom.core.errors import DataMissing
from fedloom.core.records import Array
from fedloom.workloads._data.deep_pictures import Deep, deep_picture
from fedloom.workloads._data.resizing import LUMA
from fedloom.workloads._data.settings import HubImages, Images, ImageSource, LocalImages
from fedloom.workloads._data.values import BYTES, Range, scaled

_EIGHT_BITS = ("1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "LAB", "HSV")
_TRANSPARENT = ("RGBA", "LA", "PA", "RGBa", "La")
_CHANNELS = (1, 3, 4)
_ORIENTATION = 0x0112
"""The EXIF tag that says how the camera was held."""
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class PictureRule:
    """Rules for reading pictures."""

    size: int | None
    """Side they are resized to, pixels; None leaves them unchanged."""
    channels: int
    """1 for grey, 3 for colour."""
    value_range: Range | None = None
    """Values that are black and white; None takes the file's depth."""
    first_frame: bool = False
    """Whether the first frame of a file with several is used; otherwise it is rejected."""


def picture_rule(settings: ImageSource, size: int | None, channels: int) -> PictureRule:
    """Return the rule that an image source's settings give, at a size and with channels."""
    return PictureRule(
        size=size,
        channels=channels,
        value_range=settings.value_range if isinstance(settings, LocalImages) else None,
        first_frame=isinstance(settings, Images | HubImages) and settings.frames == "first",
    )


def read_picture(source: Path | bytes, rule: PictureRule, where: str) -> tuple[Array, str]:
    """Read a picture: its pixels, (h, w, channels), uint8 or float32 from 0 to 1, and how they were scaled, in words.

    Transparent pixels become white; a photograph is turned upright as its EXIF orientation says.

    Args:
        source: the file, or its bytes.
        rule: size, channels and range.
        where: the file's path, for messages.

    Raises:
        DataMissing: it cannot be read, its mode is unknown, it has several frames, or it does not say what white is.
    """
    try:
        data = source if isinstance(source, bytes) else source.read_bytes()
        with Image.open(io.BytesIO(data)) as picture:
            return _pixels(picture, data, rule, where)
    except DataMissing:
        raise
    except UnidentifiedImageError as exc:
        what = "the file is empty" if not data else "not a kind of picture that Pillow reads"
        raise DataMissing(f"{where}: cannot be read as a picture: {what}. Remove or replace it") from exc
    except Exception as exc:  # Pillow's readers raise whatever a damaged file leads them to
        what = f"{type(exc).__name__}: {exc}"
        raise DataMissing(f"{where}: cannot be read as a picture: {what}. Remove or replace it") from exc


def array_picture(values: Array, rule: PictureRule, where: str) -> tuple[Array, str]:
    """Turn an array, (h, w), (h, w, c) or (c, h, w), into a picture as `read_picture` returns it.

    Raises:
        DataMissing: it is no such array, or its values do not say what white is.
    """
    values = values[..., None] if values.ndim == 2 else values
    if values.ndim == 3 and values.shape[2] not in _CHANNELS and values.shape[0] in _CHANNELS:
        values = np.moveaxis(values, 0, -1)
    if values.ndim != 3 or values.shape[2] not in _CHANNELS:
        raise DataMissing(f"{where}: an array of shape {values.shape}, expected (h, w), (h, w, c) or (c, h, w)")
    pixels, scaling = scaled(values, rule.value_range, where)
    if pixels.dtype == np.uint8:
        image = Image.fromarray(np.ascontiguousarray(pixels if pixels.shape[2] > 1 else pixels[..., 0]))
        return _eight_bits(image, None, rule), scaling
    alpha = pixels[..., 3:] if pixels.shape[2] == 4 else None
    return _deep_pixels(Deep(pixels=pixels[..., :3], alpha=alpha, scaling=scaling), None, rule), scaling


def _pixels(picture: ImageFile.ImageFile, data: bytes, rule: PictureRule, where: str) -> tuple[Array, str]:
    frames = int(getattr(picture, "n_frames", 1))  # pictures of formats that have no frames lack it
    if frames > 1 and not rule.first_frame and picture.format != "MPO":
        raise DataMissing(
            f"{where}: {frames} frames or pages, expected one picture. Split the file, or set "
            'workload.data.frames = "first" to read the first of each'
        )
    deep = deep_picture(picture, data, rule.value_range, where)
    picture.load()  # turns a TIFF upright by itself, and drops its tag
    turn = _TURNS.get(picture.getexif().get(_ORIENTATION, 1))
    if deep is not None:
        return _deep_pixels(deep, turn, rule), deep.scaling
    if picture.mode not in (*_EIGHT_BITS, *_TRANSPARENT):
        known = ", ".join((*_EIGHT_BITS, *_TRANSPARENT, "I;16", "I", "F"))
        raise DataMissing(f"{where}: pictures of mode {picture.mode!r} are not known, only {known}. Convert the file")
    pixels = _eight_bits(picture, turn, rule)
    return (pixels, BYTES) if rule.value_range is None else scaled(pixels, rule.value_range, where)


def _eight_bits(picture: Image.Image, turn: Image.Transpose | None, rule: PictureRule) -> Array:
    if picture.mode in _TRANSPARENT or "transparency" in picture.info:
        layered = picture.convert("RGBA")
        white = Image.new("RGBA", layered.size, "white")
        picture = Image.alpha_composite(white, layered)
    if picture.mode == "LAB":
        lab, screen = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(picture, lab, screen, outputMode="RGB")
        picture = picture if converted is None else converted
    picture = picture.convert("L" if rule.channels == 1 else "RGB")
    picture = picture if turn is None else picture.transpose(turn)
    return np.asarray(_resized(picture, rule.size), np.uint8).reshape(*_shape(picture, rule), rule.channels)


def _deep_pixels(deep: Deep, turn: Image.Transpose | None, rule: PictureRule) -> Array:
    """Return grey or colour at the requested size, float32; transparent pixels white."""
    pixels = deep.pixels
    if deep.alpha is not None:
        pixels = pixels * deep.alpha + (1.0 - deep.alpha)
    if rule.channels == 1 and pixels.shape[2] == 3:
        pixels = pixels @ LUMA[:, None]
    bands = []
    for band in np.moveaxis(pixels, -1, 0):
        image = Image.fromarray(np.ascontiguousarray(band, np.float32))
        bands.append(np.asarray(_resized(image if turn is None else image.transpose(turn), rule.size)))
    return np.stack(bands * (rule.channels // len(bands)), axis=-1)


def _resized(picture: Image.Image, size: int | None) -> Image.Image:
    if size is None or picture.size == (size, size):
        return picture
    return picture.resize((size, size), Image.Resampling.BILINEAR)


def _shape(picture: Image.Image, rule: PictureRule) -> tuple[int, int]:
    return (picture.height, picture.width) if rule.size is None else (rule.size, rule.size)
