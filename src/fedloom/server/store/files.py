"""Files that are whole or not there, and what a full disk is called."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fedloom.core import frames
from fedloom.core.errors import StorageFull
from fedloom.core.records import Record


def write(path: Path, content: bytes) -> None:
    """Replace a file's content so that a reader sees the old or the new one, whatever happens."""
    with replacing(path) as file:
        file.write(content)


def write_frame(path: Path, record: Record) -> None:
    """Write a frame likewise."""
    with replacing(path) as file:
        for piece in frames.pieces(record):
            file.write(piece)


@contextlib.contextmanager
def replacing(target: Path | Callable[[], Path]) -> Iterator[Any]:
    """A file to write that takes its place only when it is whole; a callable is asked for the place at the end."""
    near = target if isinstance(target, Path) else target()
    beside = near.with_name(f".{near.name}.{os.getpid()}.tmp")
    with full_disk(near.parent):
        try:
            with beside.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            beside.replace(target if isinstance(target, Path) else target())
        except BaseException:
            with contextlib.suppress(OSError):
                beside.unlink()
            raise
        folder = os.open(near.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


@contextlib.contextmanager
def full_disk(where: Path) -> Iterator[None]:
    """Turn the system's complaints about space into ours."""
    try:
        yield
    except OSError as exc:
        if exc.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise StorageFull(
                f"cannot write to {where}: {exc.strerror}. Everything saved before is intact; make room, then "
                "go on with `fedloom resume`"
            ) from exc
        raise
