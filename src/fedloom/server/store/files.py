"""Atomic writes of a run's files; reports a full disk."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

from fedloom.core import files, frames
from fedloom.core.errors import StorageFull
from fedloom.core.records import Record


def write(path: Path, content: bytes | str) -> None:
    """Replace a file's content so that a reader sees the old or the new one, after any failure.

    Raises:
        StorageFull: the disk is full; the previous content is unchanged.
    """
    with full_disk(path.parent):
        files.write(path, content)


def write_frame(path: Path, record: Record) -> None:
    """Write a record's frame likewise."""
    with full_disk(path.parent), files.replacing(path) as file:
        for piece in frames.pieces(record):
            file.write(piece)


@contextlib.contextmanager
def full_disk(where: Path) -> Iterator[None]:
    """Translate the system's errors about space to `StorageFull`."""
    try:
        yield
    except OSError as exc:
        if files.is_full(exc):
            raise StorageFull(
                f"cannot write to {where}: {exc.strerror}. Everything saved before is intact; free disk space, then "
                "run `fedloom resume`"
            ) from exc
        if exc.errno in (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EIO, errno.ESTALE):
            raise StorageFull(
                f"cannot write to {where}: {exc.strerror}. Everything saved before is intact. Make the folder "
                "writable, or choose another one for a new run with --out"
            ) from exc
        raise
