"""Checks the names and labels of members."""

from __future__ import annotations

import re
from collections.abc import Mapping

from fedloom.core.errors import BadMessage

MAX_NAME = 64
"""Characters of a member's name, limited by certificates."""
MAX_STEM = 56
"""Characters of a name shared by several members, to which a number is appended."""
MAX_LABELS = 16
MAX_LABEL = 64
"""Characters of a label's key or value."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def check_name(name: str, longest: int) -> None:
    """Raise `BadMessage` unless this is a name of at most `longest` characters."""
    if len(name) > longest or not _NAME.fullmatch(name):
        raise BadMessage(
            f"name: expected 1 to {longest} letters, digits, dots, dashes or underscores, the first a letter or digit, "
            f"got {name[:80]!r} ({len(name)}); a name for several members must be shorter, because a number is appended"
        )


def check_labels(labels: Mapping[str, str]) -> None:
    """Raise `BadMessage` for labels beyond their limits."""
    words = [word for pair in labels.items() for word in pair]
    if len(labels) > MAX_LABELS or not all(0 < len(word) <= MAX_LABEL and word.isprintable() for word in words):
        raise BadMessage(f"labels: expected at most {MAX_LABELS}, keys and values of 1 to {MAX_LABEL} characters")
