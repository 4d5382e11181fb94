"""A process that imports once and forks workers: `python -m fedloom.simulation.nursery WORKLOAD [DESCRIPTOR]`.

From the file descriptor, if there is one, it reads the run's Python objects first (`packing`), which its workers share.

It reads one JSON object a line on its standard input, `{"node", "address", "token"}` to start a worker, and writes one
a line on its standard output, `{"started", "pid"}` and `{"ended", "pid", "status"}`. When its input ends (its parent is
gone, for any reason) it kills the workers and exits. Forking after the heavy imports shares their memory;
nothing here starts a thread before a fork.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import pathlib
import selectors
import signal
import sys
import time
from typing import Any

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_ORPHAN_GENERATIONS = 100
"""Times that children of children are looked for at the end: each look ends one generation."""


def main(preload: str, objects: int | None = None) -> None:
    """Serve until the input ends.

    Args:
        preload: the workload to import.
        objects: file descriptor to read the run's Python objects from, to its end.
    """
    with contextlib.redirect_stdout(sys.stderr):  # the output is the protocol's
        if objects is not None:
            _take_objects(objects)
        with contextlib.suppress(Exception):  # a workload that cannot be loaded fails in its first job, with traceback
            from fedloom.core import registry

            registry.part("workloads", preload, "workload")
        import fedloom.simulation.worker  # noqa: F401

    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    os.set_blocking(wake_read, False)
    signal.set_wakeup_fd(wake_write)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    selector = selectors.DefaultSelector()
    selector.register(0, selectors.EVENT_READ)
    selector.register(wake_read, selectors.EVENT_READ)
    workers: dict[int, str] = {}
    pending = b""
    try:
        while True:
            for key, _ in selector.select():
                if key.fd == wake_read:
                    with contextlib.suppress(BlockingIOError):
                        os.read(wake_read, 4096)
                    _reap(workers)
                    continue
                data = os.read(0, 65536)
                if not data:
                    return
                *lines, pending = (pending + data).split(b"\n")
                for line in lines:
                    spec = json.loads(line)
                    pid = _fork(spec)
                    workers[pid] = spec["node"]
                    _say(started=spec["node"], pid=pid)
    finally:
        for pid in workers:
            _end_group(pid)
        _end_orphans()


def _take_objects(descriptor: int) -> None:
    """Read the run's Python objects; a failure is shown, and the workload's first job says what is missing."""
    from fedloom.simulation.packing import unpack

    with os.fdopen(descriptor, "rb") as pipe:
        content = pipe.read()
    try:
        unpack(content)
    except Exception:
        sys.excepthook(*sys.exc_info())


def _fork(spec: dict[str, str]) -> int:
    parent = os.getpid()
    pid = os.fork()
    if pid:
        with contextlib.suppress(OSError):  # it may be faster, or gone
            os.setpgid(pid, pid)
        return pid
    status = 1
    try:
        os.setpgid(0, 0)  # what a client's code starts is ended with its worker
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
        os.dup2(2, 1)  # what clients print goes to people, not into the protocol
        from fedloom.client.helper_processes.process import ProcessHelpers
        from fedloom.simulation.worker import work

        work(spec["node"], spec["address"], spec["token"], ProcessHelpers())
        status = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stderr.flush()
        sys.stdout.flush()
        os._exit(status)


def _reap(workers: dict[int, str]) -> None:
    while workers:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        if pid not in workers:  # started by a worker that has ended, and left to us
            continue
        _end_group(pid)
        _say(ended=workers.pop(pid, ""), pid=pid, status=os.waitstatus_to_exitcode(status))


def _end_group(leader: int) -> None:
    """End a worker and what it has started, unless that has left its process group."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)


def _end_orphans() -> None:
    """End processes that workers have started in groups of their own; their parents gone, they are children of this."""
    for _ in range(_ORPHAN_GENERATIONS):
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        children = _children()
        if not children:
            return
        for pid in children:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


def _children() -> list[int]:
    try:
        with pathlib.Path(f"/proc/self/task/{os.getpid()}/children").open(encoding="utf-8") as file:
            return [int(word) for word in file.read().split()]
    except OSError:  # a kernel without that list
        return []


def _say(**values: Any) -> None:
    with contextlib.suppress(BrokenPipeError):
        os.write(1, json.dumps(values).encode() + b"\n")


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else None)
