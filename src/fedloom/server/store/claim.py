"""Claims a run's folder for one process at a time."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from fedloom.core.errors import RunExists
from fedloom.core.run_files import RUN

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
"""What a file system without locks answers: then nothing is locked."""


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Hold a run's folder: no other process can, until the block or this process ends, however it ends.

    Raises:
        RunExists: another process, or another session of this one, is at work in the folder.
    """
    descriptor = os.open(folder / RUN, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            raise RunExists(
                f"another process uses the run folder {folder}; only one can. Wait until it ends, or stop "
                "it (Ctrl-C, or `fedloom stop` for a run of a server), then resume"
            ) from exc
        except OSError as exc:
            if exc.errno not in _NO_LOCKS:
                raise
        yield
    finally:
        os.close(descriptor)
