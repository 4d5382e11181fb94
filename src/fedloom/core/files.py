"""Files that are whole or not there: written beside their place, flushed to the disk, renamed into it."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO


def write(path: Path, content: bytes | str, *, private: bool = False) -> None:
    """Replace a file so that a reader meets the old or the new content, whatever happens.

    Args:
        path: its place.
        content: bytes, or text, which is written as UTF-8.
        private: whether only the file's owner may read it.

    Raises:
        OSError: it cannot be written; what was there before is still there.
    """
    with replacing(path, private=private) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def replacing(target: Path | Callable[[], Path], *, private: bool = False) -> Iterator[BinaryIO]:
    """Open a file that takes its place when the block ends, and is removed when the block raises.

    Args:
        target: its place, or a function that gives it: called before the block for the folder, and after it for the
            name, which may so depend on what was written.
        private: whether only the file's owner may read it.

    Raises:
        OSError: it cannot be written; what was there before is still there.
    """
    near = target if isinstance(target, Path) else target()
    beside = near.with_name(f".{near.name}.{os.getpid()}.tmp")
    try:
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600 if private else 0o666)
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        beside.replace(target if isinstance(target, Path) else target())
    except BaseException:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise
    _sync_folder(near.parent)


def is_full(exc: OSError) -> bool:
    """Whether an error says that the disk, a quota or a file's greatest size is used up."""
    return exc.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def _sync_folder(folder: Path) -> None:
    """Flush a folder's list of names, without which a rename may not survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
