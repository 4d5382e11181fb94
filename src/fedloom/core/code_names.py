"""Names of code that is a file or a folder on the wire: its name and SHA-256, which each machine finds by itself.

A text `mine.py#sha256=HEX` names a plug-in's file (or package's folder, or app's) by content; in a setting,
`net.py#sha256=HEX:build` names a function in it. No path and no file travels: a machine that has a copy which its own
administrator or owner allows puts it into its code store, below the cache folder, from where it is loaded. What is in
the store under a digest has that digest, whatever becomes of the original.
"""

from __future__ import annotations

import contextlib
import functools
import re
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from fedloom.core.code_files import code_digest, copy_code
from fedloom.core.errors import UnknownName
from fedloom.core.user_folders import cache_folder

_TEXT = re.compile(r"(?P<place>[^\0]{1,4096})#sha256=(?P<sha256>[0-9a-f]{64})(?::(?P<attribute>[\w.]+))?")


@dataclass(frozen=True, slots=True)
class CodeName:
    """Code by name and content."""

    name: str
    """Name of the file or folder, without a path."""
    sha256: str
    """Digest of its content, as `core.code_files.code_digest` makes it."""
    attribute: str = ""
    """What in it a setting names; empty for a plug-in or an app."""
    path: str = ""
    """Path on the server, which an administrator may add; empty on the wire to nodes and from users."""

    def __str__(self) -> str:
        """Return it as text."""
        return f"{self.path or self.name}#sha256={self.sha256}" + (f":{self.attribute}" if self.attribute else "")

    @classmethod
    def parse(cls, text: str) -> CodeName | None:
        """Read a text; None if it does not name code this way."""
        match = _TEXT.fullmatch(text)
        if match is None:
            return None
        place = match["place"]
        name = place.rpartition("/")[2]
        if not name.strip() or name in (".", ".."):
            return None
        return cls(name, match["sha256"], match["attribute"] or "", place if "/" in place else "")

    @classmethod
    def of(cls, path: Path, attribute: str = "") -> CodeName:
        """Return the name of a file or folder here.

        Raises:
            OSError: it cannot be read.
        """
        full = path.expanduser().resolve(strict=True)
        return cls(full.name, code_digest(full), attribute)

    @property
    def content(self) -> CodeName:
        """Return the name of the whole file or folder, without a path."""
        return replace(self, attribute="", path="")


def keep_in_store(code: CodeName, source: Path) -> Path:
    """Copy code into this user's store, unless it is there; returns the copy's path.

    Raises:
        UnknownName: the source's content is not what the name says.
        OSError: the source cannot be read, or the store not written.
    """
    place = _place(code)
    if _has(place, code.sha256):
        return place
    top = place.parent.parent
    top.mkdir(parents=True, exist_ok=True, mode=0o700)
    made = Path(tempfile.mkdtemp(prefix=".new-", dir=top))
    try:
        copy_code(source, made / code.name)
        found = code_digest(made / code.name)
        if found != code.sha256:
            raise UnknownName(f"{source}: expected code with SHA-256 {code.sha256}, found {found}")
        _move(made, place.parent, code.sha256)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return place


def stored(code: CodeName) -> Path:
    """Return where code lies in this user's store; its content is checked once in a process.

    Raises:
        UnknownName: it is not there.
    """
    return _checked(_place(code), code.sha256)


@functools.lru_cache(maxsize=256)
def _checked(place: Path, sha256: str) -> Path:
    if not _has(place, sha256):
        raise UnknownName(
            f"code {place.name!r} with SHA-256 {sha256} is not on this machine; whoever runs it has to list a file or "
            "folder of that content: a server with --allow, a node under `code` in its policy"
        )
    return place


def _place(code: CodeName) -> Path:
    return cache_folder() / "code" / code.sha256 / code.name


def _has(place: Path, sha256: str) -> bool:
    with contextlib.suppress(OSError):
        return place.exists() and code_digest(place) == sha256
    return False


def _move(made: Path, target: Path, sha256: str) -> None:
    """Put a finished folder in its place; another process may have been faster, and a damaged one is replaced."""
    made.chmod(0o700)
    if target.is_dir() and not any(_has(each, sha256) for each in target.iterdir()):
        shutil.rmtree(target)
    try:
        Path(made).rename(target)
    except OSError:
        for each in made.iterdir():  # the same content under another name, or another process's
            if not _has(target / each.name, sha256):
                Path(each).rename(target / each.name)
