"""Files and folders of code that an experiment refers to by path: where they are, their digests, their copies."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedloom.core.run_files import EXPERIMENT, RUN

_CACHE = "__pycache__"
_RUN = {EXPERIMENT, RUN}
"""Files that tell a run's folder."""


@dataclass(frozen=True, slots=True)
class CodeFile:
    """A setting that names a file, or a package's folder, of code."""

    section: str
    steps: tuple[str | int, ...]
    """Its location in the section's table; `("name",)` for a plug-in's own name."""
    path: str
    rest: str
    """What follows the path in the setting: `:NAME`, or nothing."""

    @property
    def dotted(self) -> str:
        """Return the setting as a user writes it."""
        return ".".join(map(str, (self.section, *self.steps)))


def code_digest(path: Path) -> str:
    """Return the SHA-256 of a file's content, or of the names and contents of a folder's files, in hexadecimal.

    Raises:
        OSError: it cannot be read.
    """
    if path.is_file():
        return hashlib.sha256(path.read_bytes()).hexdigest()
    digest = hashlib.sha256()
    for name in _files(path):
        line = f"{name}\0{hashlib.sha256((path / name).read_bytes()).hexdigest()}\n"
        digest.update(line.encode("utf-8", "surrogateescape"))  # names need not be UTF-8
    return digest.hexdigest()


def code_bytes(path: Path) -> int:
    """Return the bytes of a file, or of the files of a folder that a copy would have.

    Raises:
        OSError: it cannot be read.
    """
    return path.stat().st_size if path.is_file() else sum((path / name).stat().st_size for name in _files(path))


def copy_code(source: Path, target: Path, without: Path | None = None) -> None:
    """Copy a file, or a folder's files without hidden ones, Python's caches and runs, to a place that is not there yet.

    Args:
        source: the file or folder.
        target: the copy.
        without: a folder that is left out, such as the run's that is being made.

    Raises:
        OSError: it cannot be read or written.
    """
    if source.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        return
    skipped = None if without is None else without.resolve()
    for name in [name for name in _files(source) if skipped is None or not (source / name).is_relative_to(skipped)]:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, target / name)


def set_text(table: object, steps: Sequence[str | int], value: str) -> None:
    """Replace a text of a table of settings, at a location from the table inwards."""
    *outer, last = steps
    for step in outer:
        table = _inside(table, step)
    if isinstance(table, list) and isinstance(last, int):
        table[last] = value
    if isinstance(table, dict):
        table[last] = value


def _inside(table: object, step: str | int) -> object:
    if isinstance(table, list) and isinstance(step, int):
        return table[step]
    return table[step] if isinstance(table, dict) else None


def _files(folder: Path) -> Iterator[str]:
    """Yield the paths of a folder's files, relative to it and sorted.

    Hidden files, Python's caches and folders of runs, which people keep in an app's folder, are not among them.
    """
    found = list[str]()
    for at, folders, names in os.walk(folder):
        if _RUN.issubset(names):
            folders.clear()
            continue
        folders[:] = [name for name in folders if name != _CACHE and not name.startswith(".")]
        for name in names:
            full = Path(at, name)
            if full.is_file() and not name.startswith("."):
                found.append(full.relative_to(folder).as_posix())
    yield from sorted(found)
