"""Claims a run's folder for one process at a time.

A lock of the operating system holds it, which ends with its process. On a file system without locks a file does,
`run.lock`, which says whose it is: that of a process of this machine that has ended is replaced.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import platform
from collections.abc import Iterator
from pathlib import Path

from fedloom.core.errors import RunExists
from fedloom.core.run_files import LOCK, RUN

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
"""What a file system without locks answers."""


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Hold a run's folder: no other process can, until the block or this process ends, however it ends.

    Raises:
        RunExists: another process, or another session of this one, is at work in the folder.
    """
    with contextlib.ExitStack() as stack:
        descriptor = os.open(folder / RUN, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        stack.callback(os.close, descriptor)
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
            stack.enter_context(_lock_file(folder))
        yield


@contextlib.contextmanager
def _lock_file(folder: Path) -> Iterator[None]:
    """Hold a folder by a file with this process in it."""
    path, mine = folder / LOCK, {"host": platform.node(), "pid": os.getpid(), "started": _started(os.getpid())}
    while True:
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            break
        except FileExistsError:
            _remove_stale(path, folder)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump(mine, file)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def _remove_stale(path: Path, folder: Path) -> None:
    """Remove a lock whose process has ended.

    Raises:
        RunExists: it has not, or that cannot be known here.
    """
    try:
        holder = json.loads(path.read_text(encoding="utf-8"))
        host, pid, started = str(holder["host"]), int(holder["pid"]), str(holder["started"])
    except FileNotFoundError:
        return
    except (OSError, ValueError, KeyError, TypeError):
        host, pid, started = "an unknown machine", 0, ""
    if host == platform.node() and _started(pid) != started:
        path.unlink(missing_ok=True)
        return
    raise RunExists(
        f"process {pid} of {host} uses the run folder {folder}, says {path}; only one can (this file system has no "
        "locks). Wait until it ends, or stop it; if it has ended without removing that file, remove it, then resume"
    )


def _started(pid: int) -> str:
    """Return when a process of this machine was started, which tells it from others of its number; empty if none is."""
    try:
        content = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    return content.rpartition(")")[2].split()[19]
