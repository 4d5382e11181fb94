"""Text from elsewhere (clients, files), safe to print, on any terminal."""

from __future__ import annotations

import codecs
import io
import json
import re
from typing import TextIO

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_ESCAPING = "fedloom.escaping"


def harmless(text: str) -> str:
    """Return the text without control characters (except newline and tab), which could alter a terminal's content."""
    return _CONTROL.sub("?", text)


def escape_unprintable(stream: TextIO) -> None:
    """Make a stream write characters that its encoding lacks as `\\uXXXX`, as JSON does, instead of raising."""
    if isinstance(stream, io.TextIOWrapper):
        codecs.register_error(_ESCAPING, _escaped)
        stream.reconfigure(errors=_ESCAPING)


def _escaped(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return json.dumps(error.object[error.start : error.end])[1:-1], error.end
