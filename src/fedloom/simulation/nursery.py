"""A process that imports once and forks workers: `python -m fedloom.simulation.nursery`.

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
import selectors
import signal
import sys
from typing import Any

_PR_SET_PDEATHSIG = 1


def main(preload: str) -> None:
    """Serve until the input ends."""
    with contextlib.suppress(Exception):  # a workload that cannot be loaded fails in its first job, with its traceback
        from fedloom.core import registry

        registry.part("workloads", preload, "workload")
    import fedloom.simulation.worker  # noqa: F401

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
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _fork(spec: dict[str, str]) -> int:
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
        os.dup2(2, 1)  # what clients print goes to people, not into the protocol
        from fedloom.client.helper_process import ProcessHelpers
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
        _say(ended=workers.pop(pid, ""), pid=pid, status=os.waitstatus_to_exitcode(status))


def _say(**values: Any) -> None:
    with contextlib.suppress(BrokenPipeError):
        os.write(1, json.dumps(values).encode() + b"\n")


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    main(sys.argv[1])
