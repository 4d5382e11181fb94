"""Reads pictures of more than 8 bits a channel, which Pillow returns unscaled, or cut to 8 bits."""

from __future__ import annotations

import io
import sys
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFile, TiffImagePlugin

from fedloom.core.errors import DataMissing
from fedloom.core.records import Array
from fedloom.workloads._data.values import Range, scaled, unsaid

_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339
_SIGNED = 2
_OTHER_BYTE = {"L": "B", "B": "L", "N": "B" if sys.byteorder == "little" else "L"}
"""Which order reads the low byte of 16-bit colour where the first reads the high one."""
_DEEP_COLOUR = ("RGB;16", "RGBA;16")
_NATIVE = {"I;16BS": "I;16S", "I;32BS": "I;32S", "F;32BF": "F;32F"}
"""Orders that Pillow confuses: libtiff hands out this machine's, whatever the file's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Deep:
    """A picture of more than 8 bits, from 0 to 1."""

    pixels: Array
    """(h, w, 1 or 3), float32."""
    alpha: Array | None = None
    """(h, w, 1), float32, 1 is opaque; None if all of it is."""
    scaling: str
    """The scaling rule of its values, in words."""


def deep_picture(picture: ImageFile.ImageFile, data: bytes, value_range: Range | None, where: str) -> Deep | None:
    """Return a picture of more than 8 bits a channel with its full depth; None if it has no more.

    Args:
        picture: just opened, not loaded.
        data: the bytes it was opened from.
        value_range: values that are black and white; None takes the file's depth.
        where: the file's path, for messages.

    Raises:
        DataMissing: the file does not say what white is.
    """
    if picture.mode.startswith("I;16") or picture.mode in ("I", "F"):
        return _grey(picture, value_range, where)
    values = _colour(picture, data)
    if values is None:
        return None
    pixels, scaling = scaled(values, value_range, where)
    key = picture.info.get("transparency")
    if values.shape[2] in (2, 4):
        alpha = values[..., -1:].astype(np.float32) / np.float32(65535.0)
        return Deep(pixels=pixels[..., :-1], alpha=alpha, scaling=scaling)
    opaque = None if key is None else (values != np.asarray(key, np.uint16)).any(-1, keepdims=True).astype(np.float32)
    return Deep(pixels=pixels, alpha=opaque, scaling=scaling)


def _grey(picture: ImageFile.ImageFile, value_range: Range | None, where: str) -> Deep:
    if isinstance(picture, TiffImagePlugin.TiffImageFile):
        picture.tile = [_in_order(tile) for tile in picture.tile]
    white_is_zero = _tag(picture, _PHOTOMETRIC, 1) == 0
    depth = value_range or _depth(picture)
    values = np.asarray(picture).astype(np.float64)
    if not np.isfinite(values).all():
        raise DataMissing(f"{where}: {int((~np.isfinite(values)).sum())} values are NaN or infinite. Replace them")
    if depth is None:
        if picture.mode != "F" or values.min() < 0.0 or values.max() > 1.0:
            raise DataMissing(f"{where}: {unsaid('float' if picture.mode == 'F' else '32-bit', values)}")
        unit, scaling = values, "floats: as they are"
    else:
        unit = (values - depth[0]) / (depth[1] - depth[0])
        scaling = f"({depth[0]:g}, {depth[1]:g}) to (0, 1)" if value_range or depth[0] else _words(depth)
    key = picture.info.get("transparency")
    return Deep(
        pixels=(1.0 - unit if white_is_zero else unit).astype(np.float32)[..., None],
        alpha=(values != key).astype(np.float32)[..., None] if isinstance(key, int) else None,
        scaling=scaling,
    )


def _words(depth: Range) -> str:
    return f"{int(depth[1]).bit_length()} bits: value / {depth[1]:g}"


def _depth(picture: ImageFile.ImageFile) -> Range | None:
    """Return black and white of the file's depth; None if unknown."""
    bits = _tag(picture, _BITS, 16 if picture.mode != "I" or picture.format in ("PNG", "PPM") else 32)
    if picture.mode == "F" or bits > 16:
        return None
    signed = _tag(picture, _SAMPLE_FORMAT, 1) == _SIGNED
    return (-float(1 << bits - 1), float((1 << bits - 1) - 1)) if signed else (0.0, float((1 << bits) - 1))


def _tag(picture: ImageFile.ImageFile, tag: int, default: int) -> int:
    """Return a TIFF's tag, the first value of several."""
    if not isinstance(picture, TiffImagePlugin.TiffImageFile):
        return default
    value = picture.tag_v2.get(tag, default)
    return int(value[0] if isinstance(value, tuple) else value)


def _in_order(tile: ImageFile._Tile) -> ImageFile._Tile:
    if tile.codec_name != "libtiff" or not isinstance(tile.args, tuple):
        return tile
    return tile._replace(args=(_NATIVE.get(tile.args[0], tile.args[0]), *tile.args[1:]))


def _colour(picture: ImageFile.ImageFile, data: bytes) -> Array | None:
    """Return 16-bit colour, (h, w, c), uint16, c 2 to 4; None if the file has none.

    Pillow reads the high byte of each value only, so the file is decoded again with the bytes swapped.
    """
    raw = {tile.args[0] if isinstance(tile.args, tuple) else tile.args for tile in picture.tile}
    name = raw.pop() if len(raw) == 1 else None
    if not isinstance(name, str):
        return None
    if name == "LA;16B":  # no reader of its low bytes; as four bytes of colour they are there as they stand
        bytes_ = _decoded(data, "RGBA").astype(np.uint16)
        return bytes_[..., 0::2] << 8 | bytes_[..., 1::2]
    if name[:-1] not in _DEEP_COLOUR:
        return None
    high, low = np.asarray(picture), _decoded(data, name[:-1] + _OTHER_BYTE[name[-1]])
    return high.astype(np.uint16) << 8 | low


def _decoded(data: bytes, raw_mode: str) -> Array:
    """Return the picture, decoded with another order of its bytes."""
    with Image.open(io.BytesIO(data)) as picture:
        picture.tile = [
            tile._replace(args=(raw_mode, *tile.args[1:]) if isinstance(tile.args, tuple) else raw_mode)
            for tile in picture.tile
        ]
        return np.asarray(picture)
