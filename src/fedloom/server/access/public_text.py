"""Removes paths of the server from texts for users."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

_PATH = re.compile(r"(?<![\w/.~<-])/(?![/\s])(?!fedloom\.proto)[^\s'\"`<>|&]+")
"""What looks like an absolute path: no part of a URL, of a relative path, of a tag, or of a gRPC method's name."""
_ENDS = ".,:;!?)]}"
"""Punctuation that ends a sentence or a bracket, and no path."""
_WORDS = 12
"""Words after a path that may be part of it, if its folders have spaces in their names."""
_OWN_PATHS = ("run_dir",)
"""Keys of JSON objects whose values are paths of the server, whatever they look like."""


def without_paths(text: str, known: str = "") -> str:
    """Return a text with absolute paths shortened to `…/` and their last part.

    Args:
        text: such as an error's message.
        known: what the reader wrote, such as an experiment; paths in it are left as they are.
    """
    if "/" not in text:
        return text
    shown, at = [], 0
    for found in _PATH.finditer(text):
        if found.start() < at:
            continue
        path = _whole(text, found.start(), found[0])
        if path in known:
            continue
        shown += [text[at : found.start()], f"…/{path.rstrip('/').rpartition('/')[2]}"]
        at = found.start() + len(path)
    return "".join([*shown, text[at:]])


def public_value(value: object, known: str = "") -> object:
    """Return a JSON value with `without_paths` applied to all its texts, and without paths of the server's."""
    match value:
        case str():
            return without_paths(value, known)
        case Mapping():
            return {key: None if key in _OWN_PATHS else public_value(inner, known) for key, inner in value.items()}
        case list() | tuple():
            return [public_value(inner, known) for inner in value]
        case _:
            return value


def public_json(line: bytes, known: str = "") -> bytes:
    """Return a JSON document likewise; the same bytes where there is nothing to remove. Other text as text."""
    if b"/" not in line:
        return line
    try:
        before = json.loads(line)
    except ValueError:
        return without_paths(line.decode(errors="replace"), known).encode()
    after = public_value(before, known)
    if after == before:
        return line
    ending = b"\n" if line.endswith(b"\n") else b""
    return json.dumps(after).encode() + ending


def _whole(text: str, start: int, word: str) -> str:
    """Return the path that starts at a place: its first word, or more where a folder here has a space in its name."""
    path = word.rstrip(_ENDS) or word
    line = text[start:].partition("\n")[0]
    end = len(word)
    for _ in range(_WORDS):
        if end >= len(line) or line[end] != " ":
            break
        following = re.match(r" +[^\s'\"`<>|&]*", line[end:])
        if following is None:
            break
        begin, end = end, end + following.end()
        longer = line[:end].rstrip(_ENDS + " ")
        slash = longer.find("/", begin)
        if _is_here(longer if slash < 0 else longer[:slash]):
            path = longer
    return path


def _is_here(path: str) -> bool:
    """Return whether a path is on this machine."""
    try:
        return Path(path).exists()
    except (OSError, ValueError):
        return False
