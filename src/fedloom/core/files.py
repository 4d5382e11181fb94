"""Atomic files: written next to their target, flushed to disk, renamed into place."""

from __future__ import annotations

import contextlib
import errno
import os
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from fedloom.core.errors import UsageError


def write(path: Path, content: bytes | str, *, private: bool = False) -> None:
    """Replace a file so that a reader meets the old or the new content, whatever happens.

    Args:
        path: its place.
        content: bytes, or text, which is written as UTF-8.
        private: whether only the file's owner may read it.

    Raises:
        OSError: it cannot be written; the previous file is unchanged.
    """
    with replacing(path, private=private) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def replacing(target: Path | Callable[[], Path], *, private: bool = False) -> Iterator[BinaryIO]:
    """Open a file that takes its place when the block ends, and is removed when the block raises.

    Args:
        target: its place, or a function that gives it: called before the block for the folder, and after it for the
            name, which may depend on the content.
        private: whether only the file's owner may read it.

    Raises:
        OSError: it cannot be written; the previous file is unchanged.
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


def restrict_new_files() -> None:
    """Restrict files and folders that this process and its children create from now on to its user."""
    os.umask(0o077)


def require_private_folder(folder: Path, what: str) -> None:
    """Refuse a folder that users other than this process's can read; one that is not there is no trouble.

    Args:
        folder: its place.
        what: description of the folder, for the error.

    Raises:
        UsageError: with the command that repairs it.
    """
    if not folder.exists():
        return
    mode, owner = folder.stat().st_mode & 0o777, folder.stat().st_uid
    place = shlex.quote(str(folder))
    if owner != os.geteuid():
        raise UsageError(
            f"{what} {folder} belongs to user {owner}, and this process runs as user {os.geteuid()}. Run it as its "
            f"owner, or transfer it, as root: chown -R {os.geteuid()} {place}"
        )
    if mode & 0o077:
        raise UsageError(
            f"{what} {folder} is accessible to other users (mode {mode:03o}), but contains keys and models: "
            f"chmod -R go= {place}"
        )


def require_unwritable_by_others(file: Path, what: str) -> None:
    """Refuse a file that users other than this process's and root could change or replace.

    Args:
        file: its place; a link is followed.
        what: description of the file, for the error.

    Raises:
        UsageError: with the command that repairs it.
        OSError: its metadata cannot be read.
    """
    real = file.resolve()
    for each in (real, real.parent):
        state = each.stat()
        fixed = os.statvfs(each).f_flag & os.ST_RDONLY
        replaceable = state.st_mode & 0o022 and not (each.is_dir() and state.st_mode & 0o1000)
        if state.st_uid not in (0, os.geteuid()):
            raise UsageError(
                f"{what} {file}: {each} belongs to user {state.st_uid}, who could change it. Let root or user "
                f"{os.geteuid()} own it: chown {os.geteuid()} {shlex.quote(str(each))}"
            )
        if replaceable and not fixed:
            raise UsageError(
                f"{what} {file}: other users can write {each} (mode {state.st_mode & 0o777:03o}). Remove their "
                f"permission: chmod go-w {shlex.quote(str(each))}"
            )


def is_full(exc: OSError) -> bool:
    """Return whether an error says that the disk, a quota or the file-size limit is exhausted."""
    return exc.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def _sync_folder(folder: Path) -> None:
    """Flush a folder's list of names, without which a rename may not survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
