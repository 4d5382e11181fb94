"""Picture files written byte by byte, for depths and orders that Pillow does not write."""

import struct
import zlib

import numpy as np

from fedloom.core.records import Array


def png16(values: Array, colour: int) -> bytes:
    """A 16-bit PNG of values (h, w, c); `colour` is the standard's colour type: 0, 2, 4 (grey, alpha), 6."""
    height, width = values.shape[:2]
    rows = values.astype(">u2").reshape(height, -1).view(np.uint8)
    lines, above = b"", np.zeros_like(rows[0])
    for row in rows:  # each line filtered with "up"
        lines += b"\2" + (row - above).tobytes()
        above = row
    header = struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(lines)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in parts
    )


def tiff(
    values: Array, *, order: str = "<", packed: bool = False, photometric: int | None = None, bits: int = 0
) -> bytes:
    """A TIFF of values (h, w, c) in their own type; `bits` = 12 packs two values into three bytes."""
    height, width, channels = values.shape
    raw = values.astype(values.dtype.newbyteorder(order)).tobytes()  # type: ignore[arg-type]  # "<" or ">"
    if bits == 12:
        pairs = values.reshape(height, -1, 2).astype(np.uint32)
        three = np.stack([pairs[..., 0] >> 4, (pairs[..., 0] & 15) << 4 | pairs[..., 1] >> 8, pairs[..., 1] & 255], -1)
        raw = three.astype(np.uint8).tobytes()
    raw = zlib.compress(raw) if packed else raw
    kind = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    photometric = photometric if photometric is not None else 2 if channels >= 3 else 1
    long, short = (4, "I"), (3, "H")
    tags = [
        (256, long, [width]),
        (257, long, [height]),
        (258, short, [bits or values.dtype.itemsize * 8] * channels),
        (259, short, [8 if packed else 1]),
        (262, short, [photometric]),
        (273, long, [0]),
        (277, short, [channels]),
        (278, long, [height]),
        (279, long, [len(raw)]),
        *([(338, short, [2])] if channels in (2, 4) else []),
        (339, short, [kind] * channels),
    ]
    behind, entries = 8 + 2 + 12 * len(tags) + 4, []
    more = b""
    for tag, (number, letter), numbers in tags:
        data = struct.pack(f"{order}{len(numbers)}{letter}", *numbers)
        if len(data) > 4:
            more, data = more + data, struct.pack(f"{order}I", behind + len(more))
        entries.append((tag, number, len(numbers), data.ljust(4, b"\0")))
    start = struct.pack(f"{order}I", behind + len(more))
    table = b"".join(
        struct.pack(f"{order}HHI", *entry[:3]) + (start if entry[0] == 273 else entry[3]) for entry in entries
    )
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HIH", 42, 8, len(tags))
    return head + table + b"\0\0\0\0" + more + raw
