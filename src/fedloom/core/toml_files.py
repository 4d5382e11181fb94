"""Reads TOML as editors write it: with or without a byte order mark."""

from __future__ import annotations

import codecs
import tomllib
from pathlib import Path

from fedloom.core.records import JsonObject

_MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
"""Encodings by the mark a file begins with; TOML itself is UTF-8."""


def read_toml(path: Path) -> JsonObject:
    """Read a TOML file.

    Raises:
        OSError: it cannot be read.
        UnicodeDecodeError, tomllib.TOMLDecodeError: it is no TOML.
    """
    data = path.read_bytes()
    encoding = next((name for mark, name in _MARKS.items() if data.startswith(mark)), "utf-8")
    try:
        return tomllib.loads(data.decode(encoding).replace("\r\n", "\n"))
    except RecursionError as exc:
        raise tomllib.TOMLDecodeError("lists and tables are nested too deeply") from exc
