"""Numbers as people read them: bytes, seconds, counts, metrics."""

from __future__ import annotations

import math

NOTHING = "\N{EN DASH}"
"""Placeholder for a missing number."""
_BYTE_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")


def byte_unit(most: float) -> tuple[float, str]:
    """Return the decimal unit for values up to `most` bytes, as (bytes in one, symbol)."""
    power = min(int(math.log10(most) // 3), len(_BYTE_UNITS) - 1) if most >= 1 else 0
    return 1000.0**power, _BYTE_UNITS[power]


def bytes_text(value: float) -> str:
    """Return bytes as `1.24 MB`: three significant digits, decimal units."""
    divisor, unit = byte_unit(abs(value))
    scaled = value / divisor
    if unit == "B":
        return f"{scaled:,.0f} B"
    return f"{scaled:,.{max(0, 2 - int(math.log10(max(abs(scaled), 1.0))))}f} {unit}"


def seconds_text(value: float) -> str:
    """Return seconds as `0.42 s`, `12.3 s`, `3 min 05 s`, `2 h 07 min`."""
    if not math.isfinite(value):
        return NOTHING
    if value < 10:
        return f"{value:.2f} s"
    if value < 60:
        return f"{value:.1f} s"
    whole = round(value)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600:,} h {whole % 3600 // 60:02d} min"


def count_text(value: int) -> str:
    """Return a count as `12,345`."""
    return f"{value:,}"


def metric_text(value: float | None) -> str:
    """Return a loss or accuracy: four digits, `–` if nothing was measured, `nan` for NaN."""
    if value is None:
        return NOTHING
    if not math.isfinite(value):
        return str(value)
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        return f"{value:.4f}"
    return f"{value:.3e}"


def share_text(part: float, whole: float) -> str:
    """Return a fraction as `12.3 %`; `–` of nothing."""
    return f"{100 * part / whole:.1f} %" if whole > 0 else NOTHING


def plural(number: int, noun: str) -> str:
    """Return a count with its noun: `1 client`, `1,200 clients`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
