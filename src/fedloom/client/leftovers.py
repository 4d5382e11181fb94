"""Processes that a run's code has started on a node: found when they appear, ended with the run."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36
_GENERATIONS = 100
"""Times that children of ended processes are looked for; each look ends one generation."""
_NOT_OURS = b"multiprocessing.resource_tracker"
"""Python's own process of shared memory, which ends by itself with this one."""


def adopt_orphans() -> None:
    """Make this process the parent of all that its children leave behind; only for a program that is fedloom's own."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)


def restore_exit_statuses() -> None:
    """Let the system remember how children end, where a library or the parent process has SIGCHLD ignored.

    Otherwise every child's exit status reads 0, and waiting for one waits for all.
    """
    if threading.current_thread() is threading.main_thread():
        handler = signal.getsignal(signal.SIGCHLD)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL if handler in (None, signal.SIG_IGN) else handler)


class Leftovers:
    """Tracks the child processes of each run. For a process that has called `adopt_orphans`.

    Children that are there when it is made are no run's.
    """

    def __init__(self) -> None:
        self._others = _children()
        self._runs: dict[str, set[int]] = {}
        self._last: str | None = None
        """The run whose code ran last: children that nobody has counted are its."""

    @contextlib.contextmanager
    def of_run(self, run_id: str) -> Iterator[None]:
        """Count the children that appear in the block, and after it until the next run's, as the run's.

        They are looked for when another run's code follows, or the run ends: reading `/proc` takes longer than a
        small client's training.
        """
        if run_id != self._last:
            self._count()
            self._last = run_id
        yield

    def end(self, run_id: str) -> None:
        """Kill a run's processes with all that they have started; those that are orphans already with the last run."""
        self._count()
        mine = self._runs.pop(run_id, set())
        if self._last == run_id:
            self._last = None
        for _ in range(_GENERATIONS):
            now = _children()
            targets = now - self._others if not self._runs else now & mine
            if not targets:
                return
            for pid in targets:
                below = descendants(pid)
                kill(pid)
                mine |= below  # left to this process when their parent ends
            time.sleep(0.01)

    def _count(self) -> None:
        """Count the children that have appeared since the last call as those of the run whose code ran last."""
        if self._last is not None:
            known = self._others.union(*self._runs.values())
            self._runs.setdefault(self._last, set()).update(_children() - known)

    def end_all(self) -> None:
        """Kill every process that was started for any run."""
        self._last = None
        self._runs.clear()
        self.end("")


@contextlib.contextmanager
def ending_what_it_starts() -> Iterator[None]:
    """End every process that the block starts, when it is left; only for a program that is fedloom's own."""
    adopt_orphans()
    started = Leftovers()
    try:
        yield
    finally:
        started.end_all()


def end_children() -> None:
    """Kill every child of this process, with what those have started where it has called `adopt_orphans`."""
    for _ in range(_GENERATIONS):
        found = _children()
        if not found:
            return
        for pid in found:
            kill(pid)
        time.sleep(0.01)


def kill(pid: int) -> None:
    """Kill a process, and reap it if it is this one's child; nothing if it has ended."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):  # no child yet, or reaped by whoever started it
        os.waitpid(pid, os.WNOHANG)


def descendants(pid: int) -> set[int]:
    """Return all descendants of a process."""
    found, todo = set[int](), [pid]
    while todo:
        new = _children(todo.pop()) - found
        found |= new
        todo += new
    return found


def _children(pid: int | None = None) -> set[int]:
    """Return the children of a process, of all its threads; of this one by default. Without `/proc` there are none."""
    found = set[int]()
    with contextlib.suppress(OSError):
        for thread in Path(f"/proc/{pid or os.getpid()}/task").iterdir():
            with contextlib.suppress(OSError):
                found |= {int(word) for word in (thread / "children").read_text(encoding="ascii").split()}
    return {child for child in found if not _is_pythons(child)} if found else found


def _is_pythons(pid: int) -> bool:
    try:
        return _NOT_OURS in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
