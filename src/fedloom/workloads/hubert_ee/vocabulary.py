"""Characters and their numbers for CTC: 0 is the blank, 1 the space, then the apostrophe and the letters."""

from __future__ import annotations

import string
from collections.abc import Iterable, Sequence
from itertools import groupby

from fedloom.core.errors import DataMissing

BLANK = 0
CHARACTERS = " '" + string.ascii_lowercase
SIZE = len(CHARACTERS) + 1
"""C, symbols including the blank."""


def encode(text: str, where: str) -> list[int]:
    """Return a text's symbols.

    Raises:
        DataMissing: it is empty, or has a character outside the vocabulary; the message names both.
    """
    plain = " ".join(text.lower().split())
    strange = sorted({each for each in plain if each not in CHARACTERS})
    if strange or not plain:
        found = f"the characters {strange}" if strange else "no character"
        raise DataMissing(f"{where}: the transcript {text!r} has {found}; expected letters a to z, ' and spaces")
    return [CHARACTERS.index(each) + 1 for each in plain]


def decode(symbols: Iterable[int]) -> str:
    """Return the text of symbols, blanks left out."""
    return "".join(CHARACTERS[symbol - 1] for symbol in symbols if symbol != BLANK)


def collapse(path: Sequence[int]) -> str:
    """Return the text of a CTC path: repeats merged, blanks left out, spaces at the ends removed."""
    return " ".join(decode(symbol for symbol, _ in groupby(path)).split())
