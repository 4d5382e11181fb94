"""Starts the nursery of a process runtime: as a fresh interpreter, or as a fork that shares a run's Python objects."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from threadpoolctl import threadpool_limits

from fedloom.simulation.packing import pack
from fedloom.simulation.workers import worker_environment

_TASKS = Path("/proc/self/task")
_HARMLESS = ("jemalloc_bg_thd",)
"""Names of threads whose library is prepared for a fork."""
_GPU = Path("/dev/nvidiactl")
"""Exists if CUDA may have been initialised, after which a forked process cannot use it."""
_MALLOPT = {"MALLOC_TRIM_THRESHOLD_": -1, "MALLOC_TOP_PAD_": -2, "MALLOC_MMAP_THRESHOLD_": -3}
"""Parameters of glibc's mallopt, by the variables that set them in a fresh process."""


class Nursery(Protocol):
    """A running nursery: its input and output, and its end."""

    @property
    def stdin(self) -> IO[bytes] | None:
        """Return the pipe to its input."""

    @property
    def stdout(self) -> IO[bytes] | None:
        """Return the pipe from its output."""

    @property
    def pid(self) -> int:
        """Return its process."""

    def poll(self) -> int | None:
        """Return its exit status, negative for a signal; None while it runs."""


@dataclass
class ForkedNursery:
    """A nursery that is a fork of this process."""

    pid: int
    stdin: IO[bytes]
    stdout: IO[bytes]
    _status: int | None = None

    def poll(self) -> int | None:
        if self._status is None:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            self._status = os.waitstatus_to_exitcode(status) if ended else None
        return self._status


def start_nursery(preload: str, objects: str) -> Nursery:
    """Start a nursery.

    Args:
        preload: name of the workload whose imports the workers share.
        objects: key of the run's Python objects; empty if it has none.

    Raises:
        UsageError: the objects can neither be shared nor sent.
    """
    if objects and may_fork():
        return _fork(preload)
    return _spawn(preload, pack(objects) if objects else b"")


def may_fork() -> bool:
    """Return whether a fork of this process is as good as a fresh one: it has no threads, and no GPU to share.

    OpenBLAS ends its threads before a fork and starts them again when needed: an empty fork shows the other threads.
    The thread of jemalloc, the allocator of Arrow that pandas and scikit-learn import, takes no part in this process'
    work, and jemalloc takes its locks before a fork and renews them in the child.
    """
    if threading.active_count() > 1 or threading.current_thread() is not threading.main_thread() or _GPU.exists():
        return False
    if not _TASKS.is_dir():
        return False
    if _has_threads():
        pid = os.fork()
        if not pid:
            os._exit(0)
        os.waitpid(pid, 0)
    return not _has_threads()


def _has_threads() -> bool:
    """Return whether this process has threads that a fork would miss, besides the calling one."""
    names = [_thread_name(task) for task in _TASKS.iterdir() if task.name != str(os.getpid())]
    return any(name not in _HARMLESS for name in names)


def _thread_name(task: Path) -> str:
    """Return a thread's name as the system has it; that of a harmless one if it has just ended."""
    try:
        return (task / "comm").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return _HARMLESS[0]


def _spawn(preload: str, objects: bytes) -> Nursery:
    """Start a fresh interpreter; objects go through a pipe that it alone inherits."""
    command = [sys.executable, "-m", "fedloom.simulation.nursery", preload]
    read, write = os.pipe()
    try:
        process = subprocess.Popen(
            [*command, str(read)] if objects else command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **worker_environment()},
            pass_fds=(read,) if objects else (),
            start_new_session=True,  # Ctrl-C is for the server, which then stops its agents
        )
    finally:
        os.close(read)
        with contextlib.suppress(BrokenPipeError), os.fdopen(write, "wb") as pipe:  # its end is the runtime's to notice
            pipe.write(objects)
    return process


def _fork(preload: str) -> Nursery:
    """Fork this process; the child serves as the nursery, and never returns."""
    from fedloom.simulation import nursery

    in_read, in_write = os.pipe()
    out_read, out_write = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        os.close(in_read)
        os.close(out_write)
        return ForkedNursery(pid, os.fdopen(in_write, "wb"), os.fdopen(out_read, "rb"))
    status = 1
    try:
        os.setsid()
        os.dup2(in_read, 0)
        os.dup2(out_write, 1)
        for end in (in_read, in_write, out_read, out_write):
            os.close(end)
        _become_worker()
        nursery.main(preload)
        status = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        with contextlib.suppress(Exception):
            sys.stderr.flush()
        os._exit(status)


def _become_worker() -> None:
    """Take what `worker_environment` sets in a fresh process, and drop the program's signal handlers."""
    os.environ.update(worker_environment())
    libc = ctypes.CDLL(None)
    for variable, parameter in _MALLOPT.items():
        libc.mallopt(parameter, min(int(os.environ[variable]), 2**31 - 1))
    threadpool_limits(1)
    if (torch := sys.modules.get("torch")) is not None:  # the limit above is of this thread, PyTorch's of every thread
        torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
