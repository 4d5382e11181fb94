"""Pictures of many cells (clients by rounds, classes by clients) as one small embedded image with axes."""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fedloom.reporting.axes import Plane, Range
from fedloom.reporting.charts import figure, frame, svg
from fedloom.reporting.markup import Markup, tag

Shade = npt.NDArray[np.float64]
"""Cells from 0 (nothing) to 1 (most), rows from top to bottom."""
_BLUE = (47, 107, 216)
_RED = (217, 45, 78)


def grid_picture(
    title: str,
    shade: Shade,
    *,
    spoken: str,
    x_label: str,
    x: Range,
    y: Range,
    y_names: Sequence[tuple[float, str]] | None = None,
    marked: Shade | None = None,
    legend: Sequence[tuple[str, int]] = (),
    note: str | None = None,
) -> Markup:
    """Draw cells of blue, darker for more; and of red where `marked`.

    Args:
        title: the title.
        shade: shape (rows, columns), each from 0 to 1.
        spoken: the text for screen readers.
        x_label: name of the horizontal axis.
        x: values of the columns' outer edges.
        y: values of the rows' outer edges; `y.low` is the bottom's.
        y_names: vertical ticks as (value, label); by default numbers.
        marked: same shape as `shade`; 0 is unmarked.
        legend: key to the colours.
        note: a sentence below.
    """
    rows = shade.shape[0]
    left = max(76.0, 16.0 + 6.5 * max((len(label) for _, label in y_names or ()), default=0))
    plane = Plane(width=940.0, height=50.0 + min(max(13.0 * rows, 70.0), 270.0), left=left, x=x, y=y)
    image = tag(
        "image",
        href="data:image/png;base64," + base64.b64encode(_png(_paint(shade, marked))).decode(),
        x=plane.left,
        y=plane.top,
        width=plane.width - plane.left - plane.right,
        height=plane.height - plane.top - plane.bottom,
        preserveAspectRatio="none",
        class_="cells",
    )
    names = None if y_names is None else lambda _: y_names
    axes = frame(plane, x_label, x_whole=True, y_ticks=names)
    return figure(title, svg(plane, spoken, axes, image), legend=legend, note=note, wide=True)


def _paint(shade: Shade, marked: Shade | None) -> npt.NDArray[np.uint8]:
    """Return a colour with transparency, so that the page's background (light or dark) is visible."""
    pixels = np.zeros((*shade.shape, 4), np.uint8)
    pixels[..., :3] = _BLUE
    # The faintest cell that is not empty must still be seen.
    pixels[..., 3] = np.where(shade > 0, 38 + 217 * np.clip(shade, 0, 1), 0)
    if marked is not None:
        pixels[marked > 0, :3] = _RED
        pixels[..., 3] = np.where(marked > 0, 115 + 140 * np.clip(marked, 0, 1), pixels[..., 3])
    return pixels


def _png(pixels: npt.NDArray[np.uint8]) -> bytes:
    """Return an RGBA image, shape (rows, columns, 4), as a PNG file."""
    rows, columns, _ = pixels.shape
    lines = np.concatenate([np.zeros((rows, 1), np.uint8), pixels.reshape(rows, columns * 4)], axis=1)

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", columns, rows, 8, 6, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(lines.tobytes(), 9))
        + chunk(b"IEND", b"")
    )
