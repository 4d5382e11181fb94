"""The file format of compressed images: header, checksums, and three payloads. Imports no torch.

    magic "FLIC"  version u8  flags u8  reserved u16
    height u32  width u32  model 16 bytes
    bytes of z, y, alpha u32 each  CRC-32 of the symbols u32  CRC-32 of all but itself u32
    z  y  alpha

Numbers are little-endian. Flags: 1 grey, 2 with alpha.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

from fedloom.core.errors import UsageError

MAGIC = b"FLIC"
VERSION = 1
MOST_PIXELS = 2**25
"""Pixels of an image, at most: about 33 million."""
GREY, ALPHA = 1, 2
_HEAD = struct.Struct("<4sBBHII16sIIII")
_CRC = struct.Struct("<I")
OVERHEAD = _HEAD.size + _CRC.size
"""Bytes of a file besides its payloads."""


class StreamInvalid(UsageError):
    """A compressed file is damaged, cut short, of another kind, or of another model."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Container:
    """A compressed image."""

    height: int
    width: int
    model: bytes
    """Identity of the model that decodes it, 16 bytes."""
    grey: bool
    z: bytes
    """The hyper-latent's symbols."""
    y: bytes
    """The latent's symbols."""
    alpha: bytes | None
    """The alpha channel, compressed without loss; None without one."""
    symbols_crc: int
    """CRC-32 of the decoded symbols."""

    def pack(self) -> bytes:
        """Return the file's bytes."""
        alpha = self.alpha or b""
        flags = GREY * self.grey | ALPHA * (self.alpha is not None)
        sizes = len(self.z), len(self.y), len(alpha)
        head = _HEAD.pack(MAGIC, VERSION, flags, 0, self.height, self.width, self.model, *sizes, self.symbols_crc)
        payload = self.z + self.y + alpha
        return head + _CRC.pack(zlib.crc32(payload, zlib.crc32(head))) + payload

    @classmethod
    def unpack(cls, data: bytes, where: str) -> Container:
        """Read a file's bytes.

        Args:
            data: all of them.
            where: the file, for errors.

        Raises:
            StreamInvalid: they are no compressed image, or damaged; the message says how.
        """
        if not data.startswith(MAGIC):
            raise StreamInvalid(
                f"{where}: not an image that `fedloom codec encode` wrote: expected it to begin with {MAGIC!r}, got "
                f"{data[:4]!r}"
            )
        if len(data) < OVERHEAD:
            raise StreamInvalid(f"{where}: cut short: expected at least {OVERHEAD} bytes, got {len(data)}")
        _, version, flags, reserved, height, width, model, z, y, alpha, symbols = _HEAD.unpack_from(data)
        if version != VERSION:
            raise StreamInvalid(f"{where}: expected version {VERSION} of the format, got {version}")
        if len(data) != OVERHEAD + z + y + alpha:
            raise StreamInvalid(
                f"{where}: cut short or damaged: its header announces {OVERHEAD + z + y + alpha} bytes, it has "
                f"{len(data)}"
            )
        (crc,) = _CRC.unpack_from(data, _HEAD.size)
        if crc != zlib.crc32(data[OVERHEAD:], zlib.crc32(data[: _HEAD.size])):
            raise StreamInvalid(f"{where}: damaged: its checksum does not fit its content. Fetch the file again")
        if reserved or flags & ~(GREY | ALPHA) or not 0 < height * width <= MOST_PIXELS or z % 4 or y % 4:
            raise StreamInvalid(
                f"{where}: its header is not valid: flags {flags}, {height} x {width} pixels (at most {MOST_PIXELS:,})"
            )
        has_alpha = bool(flags & ALPHA)
        if alpha and not has_alpha:
            raise StreamInvalid(f"{where}: its header is not valid: {alpha} bytes of alpha, but no flag for it")
        start = OVERHEAD
        return cls(
            height=height,
            width=width,
            model=model,
            grey=bool(flags & GREY),
            z=data[start : start + z],
            y=data[start + z : start + z + y],
            alpha=data[start + z + y :] if has_alpha else None,
            symbols_crc=symbols,
        )


def read_container(path: Path) -> Container:
    """Read a compressed image.

    Raises:
        StreamInvalid: see `Container.unpack`; or the file is missing or cannot be read.
    """
    try:
        data = path.read_bytes()
    except OSError as exc:
        raise StreamInvalid(f"{path}: cannot be read: {exc.strerror or exc}") from exc
    return Container.unpack(data, str(path))
