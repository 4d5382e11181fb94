"""Text from elsewhere (clients, files), safe to print."""

from __future__ import annotations

import re

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def harmless(text: str) -> str:
    """The text without control characters (but newline and tab), which could repaint a terminal or reorder it."""
    return _CONTROL.sub("?", text)
