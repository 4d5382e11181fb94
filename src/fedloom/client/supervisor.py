"""A process above the agent's: it starts the agent again when a client's code has ended its process.

A fault in a C library, `os._exit` or the kernel's out-of-memory killer end a process without a word. Without this
the node would be gone with its first such client, though it could work for all others.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import signal
import time
from collections.abc import Iterator
from types import FrameType

from fedloom.client.leftovers import adopt_orphans, end_children, restore_exit_statuses
from fedloom.core.machine import MemoryKills

_log = logging.getLogger(__name__)

_PR_SET_PDEATHSIG = 1
_PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_QUICK_S = 10.0
"""An agent that dies sooner has died quickly; the pause before the next grows with each in a row."""
_FIRST_PAUSE_S, _LAST_PAUSE_S = 0.5, 5.0
_FAILED = 1


@contextlib.contextmanager
def supervised() -> Iterator[None]:
    """Run the block in a child process, and again in another one whenever that is ended without leaving the block.

    The calling process waits, passes signals on, and ends with the status of the child that has left the block, by
    whatever way. What a child leaves behind is ended. Call it before threads are started or much is imported.
    """
    adopt_orphans()
    restore_exit_statuses()
    left = _child_of_supervisor()
    try:
        yield
    finally:
        os.write(left, b"x")


def _child_of_supervisor() -> int:
    """Fork children until one leaves the block; returns in the children only: where to write that it has."""
    handlers = {number: signal.getsignal(number) for number in _PASSED_ON}
    quick, memory_kills = 0, MemoryKills()
    while True:
        began = time.monotonic()
        for number, handler in handlers.items():
            signal.signal(number, handler)
        reading, writing = os.pipe()
        supervisor, child = os.getpid(), os.fork()
        if not child:
            os.close(reading)
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != supervisor:
                os._exit(_FAILED)
            return writing
        os.close(writing)
        status, stopped = _wait(child)
        end_children()
        if _has_left(reading) or stopped:
            os._exit(status if status >= 0 else 128 - status)
        quick = quick + 1 if time.monotonic() - began < _QUICK_S else 0
        _log.warning(
            "the agent's process was ended (%s), by a client's code or for lack of memory; restarting it",
            memory_kills.explained(f"signal {-status}" if status < 0 else f"exit status {status}"),
        )
        time.sleep(min(_FIRST_PAUSE_S * 2 ** max(0, quick - 1), _LAST_PAUSE_S))


def _wait(child: int) -> tuple[int, bool]:
    """Return the child's exit status, negative for a signal, and whether this process was signalled to stop."""
    stopped = False

    def pass_on(number: int, _: FrameType | None) -> None:
        nonlocal stopped
        stopped = True
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, number)

    for number in _PASSED_ON:
        signal.signal(number, pass_on)
    while True:
        ended, status = os.waitpid(-1, 0)
        if ended == child:
            break
    for number in _PASSED_ON:
        signal.signal(number, signal.SIG_DFL)
    return os.waitstatus_to_exitcode(status), stopped


def _has_left(reading: int) -> bool:
    """Return whether the child has written that it left the block; others may still hold the pipe open."""
    os.set_blocking(reading, False)
    try:
        return bool(os.read(reading, 1))
    except BlockingIOError:
        return False
    finally:
        os.close(reading)
