"""The event loop that serves this process's gRPC ports, in a thread of its own.

All ports of a process share it: gRPC has one poller for each process, which would wake every loop for every message.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Coroutine
from typing import TypeVar

T = TypeVar("T")

_lock = threading.Lock()
_loops: dict[int, asyncio.AbstractEventLoop] = {}
"""The loop, by process id: a forked child has the object, but not its thread."""


def serving_loop() -> asyncio.AbstractEventLoop:
    """Return the loop, started if it is not running yet."""
    with _lock:
        if (loop := _loops.get(os.getpid())) is None:
            loop = _loops[os.getpid()] = asyncio.new_event_loop()
            threading.Thread(target=_serve, args=(loop,), name="fedloom-grpc", daemon=True).start()
        return loop


def on_loop(coroutine: Coroutine[object, object, T]) -> T:
    """Run a coroutine on the loop, from another thread; returns its result."""
    return asyncio.run_coroutine_threadsafe(coroutine, serving_loop()).result()


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    loop.run_forever()
