from __future__ import annotations

import io
import json
import math

import pytest

from fedloom.reporting.plain import escape_unprintable, harmless
from fedloom.reporting.quantities import NOTHING, bytes_text, metric_text, plural, seconds_text, share_text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (12_345, "12.3 kB"),
        (123_456_789, "123 MB"),
        (4.2e21, "4,200,000 PB"),
    ],
)
def test_bytes_have_three_digits_and_decimal_units(value: float, text: str) -> None:
    assert bytes_text(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.424, "0.42 s"), (12.34, "12.3 s"), (185, "3 min 05 s"), (3599.7, "1 h 00 min"), (7620, "2 h 07 min"),
     (math.nan, NOTHING)],
)  # fmt: skip
def test_seconds_grow_into_minutes_and_hours(value: float, text: str) -> None:
    assert seconds_text(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.91234, "0.9123"), (0.0, "0.0000"), (1.5e-7, "1.500e-07"), (1e30, "1.000e+30"), (math.nan, "nan"),
     (math.inf, "inf"), (None, NOTHING)],
)  # fmt: skip
def test_metrics_show_what_they_are(value: float | None, text: str) -> None:
    assert metric_text(value) == text


def test_shares_of_nothing_are_not_numbers() -> None:
    assert share_text(1, 8) == "12.5 %"
    assert share_text(0, 0) == NOTHING


def test_one_is_singular() -> None:
    assert (plural(1, "client"), plural(1200, "client")) == ("1 client", "1,200 clients")


def test_terminal_codes_are_taken_out() -> None:
    assert harmless("a\x1b[31mb\x07\u202ec\n\td\x9b") == "a?[31mb??c\n\td?"


@pytest.mark.parametrize(
    ("encoding", "printed"),
    [
        ("ascii", b"\\u00f6\\u2026\\ud83d\\ude00\\udc80!"),
        ("latin-1", b"\xf6\\u2026\\ud83d\\ude00\\udc80!"),
        ("utf-8", "ö…😀".encode() + b"\\udc80!"),
    ],
)
def test_a_stream_escapes_what_its_encoding_lacks(encoding: str, printed: bytes) -> None:
    text, raw = "ö…😀\udc80!", io.BytesIO()  # the last but one is how Python reads the byte 0x80 of a file's name
    stream = io.TextIOWrapper(raw, encoding=encoding)
    escape_unprintable(stream)
    stream.write(text)
    stream.flush()
    assert raw.getvalue() == printed
    assert json.loads(f'"{printed.decode(encoding)}"') == text
